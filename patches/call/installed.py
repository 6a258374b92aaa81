"""What is installed on one model: settled once by `compress()`, read by everything that hooks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vlmcompress.budget.planner import Planner
from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.call.shared import Shared
from vlmcompress.patches.cost.budget_solver import Solver
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.sequence.attention_bias import check_bias, check_made_here
from vlmcompress.patches.sequence.attention_masks import LayerKinds, layer_kinds
from vlmcompress.patches.sequence.call_trace import Trace
from vlmcompress.patches.signals.signals import Signals


@dataclass(frozen=True, eq=False)
class Installed(ModelParts):
    """The parts of a model, what is done with them, and the call that each thread is in."""

    planner: Planner
    signals: Signals
    solver: Solver | None
    """For a budget that is a cost."""
    positions: str
    """"keep" or "renumber"."""
    order: str
    """"raster" or "method"."""
    max_memory: int | None = None
    """Bytes that the encoder may take for frames of clips at once; None where they are encoded
    together."""
    now: CallState = field(default_factory=CallState)
    shared: Shared = field(default_factory=Shared)
    _kinds: dict[str, LayerKinds] = field(default_factory=dict)

    @classmethod
    def on(
        cls,
        parts: ModelParts,
        planner: Planner,
        signals: Signals,
        positions: str,
        order: str,
        max_memory: int | None = None,
    ) -> Installed:
        """For the parts of a model."""
        by_cost = planner.budget is not None and planner.budget.is_cost
        solver = Solver(parts, planner) if by_cost else None
        return cls(
            **vars(parts),
            planner=planner,
            signals=signals,
            solver=solver,
            positions=positions,
            order=order,
            max_memory=max_memory,
        )

    @property
    def trace(self) -> Trace:
        """Of the last call that this thread began, else of the last one that any thread did."""
        return self.now.trace or self.shared.trace

    def begin(self) -> None:
        """A call begins: what happens from now on is told of this one."""
        self.now.trace = self.shared.trace = Trace()

    @property
    def kinds(self) -> LayerKinds:
        """Of the decoder's layers; users may change the attention implementation at any time.

        Raises:
            UnsupportedModelError: the attention implementation is unknown, or takes no bias or
                mask that the method wants.
        """
        config: Any = self.lm.config
        attention = config._attn_implementation
        if attention not in self._kinds:
            found = layer_kinds(self.lm, len(self.layers), self.family.masks_in_base)
            pipeline = self.planner.pipeline
            if pipeline.attention_bias is not None:
                check_bias(self.lm, found, pipeline.attention_bias.distance, pipeline.name)
                found = replace(found, masks_made_here=True)
            if pipeline.enters_late:
                # What the model makes of its cache's first layer is too short for later ones.
                check_made_here(self.lm, found, f"{pipeline.name} needs attention masks of its own")
                found = replace(found, masks_made_here=True)
            self._kinds[attention] = found
        return self._kinds[attention]
