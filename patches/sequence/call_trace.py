"""What happened in the last call: times and decisions, read only when a report is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmcompress.budget.clock import Mark, mark, milliseconds
from vlmcompress.budget.planner import Planner
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.decoder import tokens_per_layer
from vlmcompress.ops.proving.decision import spent
from vlmcompress.patches.sequence.placeholders import Prompt
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.report.report import ImageReport
from vlmcompress.tokens import Grid, Layout, Reduction

_PARTS = ("encoder", "selection", "prefill", "decode")
_HIDDEN = ("calibration", "head")
"""Of budgets in milliseconds: what is measured inside a prefill, and the head after it."""
_SIGNALS = "signals"
"""Collected after the encoder, for the selection."""
_PENDING = 1024
"""Marks kept before they are added up, so that a long-lived model does not collect them."""


@dataclass
class ImageTrace:
    """One image or clip; `cuts` fills up while the decoder runs."""

    row: int
    layout: Layout
    plan: ImagePlan
    layers: int
    kept: Tensor
    reduction: Reduction | None = None
    """What a projector-stage method made of the tokens that it was given."""
    survivors: Survivors | None = None
    """What a method before the projector left."""
    cuts: dict[int, Tensor] = field(default_factory=dict)
    merges: dict[int, Reduction] = field(default_factory=dict)
    """Decoder layer -> the groups that enter it, by raster indices; of methods that merge there."""
    separators: dict[int, int] = field(default_factory=dict)
    """Decoder layer -> separators that enter it and the layers after it."""
    masked: int = 0
    """Tokens that the attention mask closes."""
    notes: list[str] = field(default_factory=list)
    """For the report."""

    @property
    def executed_plan(self) -> ImagePlan:
        """The plan with what was really kept in the decoder."""
        return replace(self.plan, schedule={n: len(kept) for n, kept in self.cuts.items()})

    def report(self, index: int) -> ImageReport:
        """The same with Python values."""
        cut_to = {layer: len(survivors) for layer, survivors in self.cuts.items()}
        per_layer = tokens_per_layer(self.layers, len(self.kept), cut_to)
        return ImageReport(
            index=index,
            row=self.row,
            grid=_shape(self.layout.grid),
            parts=[_shape(grid) for grid in self.layout.parts],
            before=len(self.layout),
            given=self.plan.given,
            after=len(self.kept),
            kept=self.kept.tolist(),
            groups=self._groups(),
            cuts={layer: kept.tolist() for layer, kept in self.cuts.items()},
            merges={layer: found.groups() for layer, found in self.merges.items()},
            per_layer=per_layer,
            mean=sum(per_layer) / self.layers,
            separators=tokens_per_layer(self.layers, len(self.layout.separators), self.separators),
            masked=self.masked,
            notes=self._masked() + self.notes,
        )

    def _masked(self) -> list[str]:
        few = f"{self.masked} of its tokens are closed by the attention mask"
        return [few] if self.masked else []

    def _groups(self) -> list[list[int]] | None:
        """Per token the tokens merged into it; None where nothing was merged."""
        found = self.reduction
        if self.survivors is None or not self.survivors.merged:
            return None if found is None else found.groups()
        if found is None:
            kept = self.kept
            found = Reduction(kept[:, None], kept, torch.arange(len(kept) + 1))
        return self.survivors.whole(found).groups()


def _shape(grid: Grid) -> tuple[int, int, int]:
    return grid.t, grid.h, grid.w


@dataclass
class Trace:
    """One `generate`, or one prefill and the forwards that continue it."""

    images: list[ImageTrace] = field(default_factory=list)
    decode_steps: int = 0
    prefilled: bool = False
    solved: Solved | None = None
    """The budget of the prefill, where it is a cost."""
    notes: list[str] = field(default_factory=list)
    """For the report."""
    _times: list[tuple[str, Mark, Mark]] = field(default_factory=list)
    _sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*_PARTS, _SIGNALS, *_HIDDEN), 0.0)
    )

    def add(self, name: str, start: Mark, end: Mark) -> None:
        """Account the time between two marks to `name`."""
        self._times.append((name, start, end))
        if len(self._times) > _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Add up the marks; the oldest have passed, so little is waited for."""
        for name, start, end in self._times:
            self._sums[name] += milliseconds(start, end)
        self._times.clear()

    @contextmanager
    def timed(self, name: str, device: torch.device) -> Iterator[None]:
        """Account the block to `name`."""
        start = mark(device)
        yield
        self.add(name, start, mark(device))

    def milliseconds(self) -> dict[str, float]:
        """Sums per part; `prefill` is without the selection that ran inside it."""
        self._settle()
        sums = dict(self._sums)
        inside = sums["selection"] + sums["calibration"]
        sums["prefill"] = max(0.0, sums["prefill"] - inside)
        sums["selection"] += sums.pop(_SIGNALS)
        return {name: sums[name] for name in _PARTS}

    def first_token(self) -> float:
        """Milliseconds of all that the first token waits for, where the head was timed, too."""
        times = self.milliseconds()
        return times["encoder"] + times["selection"] + times["prefill"] + self._sums["head"]


@dataclass
class Solved:
    """A budget of one call and what became of it."""

    prompt: Prompt
    planner: Planner
    """For a share of the tokens."""
    share: float
    """In percent."""
    predicted: float
    """In the unit of the budget, like `measured`."""
    measured: float | None = None
    images: list[ImageTrace] = field(default_factory=list)
    """What was done with the images of the prompt."""
    judged: float = field(default_factory=spent)
    """Milliseconds that kernels had been judged for before."""
