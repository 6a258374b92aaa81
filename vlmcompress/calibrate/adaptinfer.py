"""Where and how much AdaptInfer drops, measured on a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmcompress.api import compress
from vlmcompress.calibrate.agreement import log_likelihood, next_tokens
from vlmcompress.calibrate.changes import (
    attended_curve,
    change_point,
    histogram,
    locations,
)
from vlmcompress.calibrate.document import depth, document, share_of
from vlmcompress.calibrate.questions import CalibrationQuestion, batches
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.adaptinfer import AdaptInfer
from vlmcompress.methods.contracts.decoder import DecoderMethod, tokens_per_layer
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.shared.calibrated_schedules import cut, meet, stairs

RATIOS = (0.22, 0.35, 0.1, 0.5, 0.7)
"""What each cut after the first may leave of the cut before; the paper's usual one first."""
_FINE = 10**6  # tokens of an imaginary image whose counts are shares


def calibrate_adaptinfer(
    model: Any,
    processor: Any,
    asked: Sequence[CalibrationQuestion],
    *,
    name: str,
    budget: str | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """Find locations and shares for `adaptinfer(table=...)`.

    For each question the attention that text pays to each visual token, the mean over heads and
    text rows (ours: the paper does not say), is followed through the layers; where it changes gives
    the locations. Each cut leaves the same share of the one before. Of these locations and the
    paper's, and of the shares in `RATIOS`, those are taken with which the next tokens of the model
    on all tokens are likeliest (ours: the paper takes its counts from earlier work).

    Args:
        model: of a supported family, with at least 4 decoder layers.
        processor: the model's.
        asked: pictures and questions.
        name: of the model, for the file.
        budget: a share such as "50%" that the schedule meets; None for halfway between all tokens
            and the least that the locations allow.
        batch: questions at a time.

    Returns:
        What a schedule file holds.

    Raises:
        VLMCompressError: no questions, or a decoder of fewer than 4 layers.
        BudgetError: the budget is no share, or below what the locations allow.
    """
    share, layers = share_of(budget), depth(model)
    maps = attention_maps(model, processor, asked, batch)
    curves = torch.stack([attended_curve(one) for one in maps])
    counts = histogram([change_point(curve) for curve in curves], layers)
    inputs = list(batches(model, processor, asked, batch))
    full = next_tokens(model, inputs, "full")
    candidates, share = _candidates(counts, share)
    tried: list[dict[str, Any]] = []
    for found in candidates:
        for ratio in RATIOS:
            shares = _shares(found, ratio, layers, share)
            likely = log_likelihood(model, inputs, _Trial(shares=shares), full)
            tried.append({"locations": found, "ratio": ratio, "log_likelihood": likely})
    best = max(tried, key=itemgetter("log_likelihood"))
    # Every question counts alike, however much of its attention goes to the picture.
    curve = (curves / curves[:, -1:]).mean(0).tolist()
    measured = {"samples": len(maps), "histogram": counts, "curve": curve, "tried": tried}
    schedule = {
        "locations": best["locations"],
        "ratio": best["ratio"],
        "shares": _shares(best["locations"], best["ratio"], layers, share),
        "budget": budget,
    }
    return document("adaptinfer", name, layers, measured, schedule)


def attention_maps(
    model: Any, processor: Any, asked: Sequence[CalibrationQuestion], batch: int = 8
) -> list[Tensor]:
    """[L, V] for each question: attention from the text to each visual token in each layer.

    Float32 on the CPU; the mean over heads and over the text tokens after the picture.

    Raises:
        VLMCompressError: there are no questions.
    """
    if not asked:
        raise VLMCompressError("calibration needs at least one question, got none")
    maps: list[Tensor] = []
    for inputs in batches(model, processor, asked, batch):
        watching = _Watching()
        with compress(model, watching), torch.no_grad():
            model(**inputs, use_cache=False)
        # Layer by layer the pictures come in the same order.
        rows = [watching.seen[layer] for layer in sorted(watching.seen)]
        maps += [torch.stack(picture) for picture in zip(*rows, strict=True)]
    return maps


def _candidates(counts: Sequence[int], share: float | None) -> tuple[list[list[int]], float]:
    """Locations of the histogram, then those of the paper at the same shares of the depth.

    Args:
        counts: [L] change points at each layer.
        share: the mean that the schedule has to meet; None for halfway between all tokens and the
            least that all locations allow.

    Returns:
        Those that reach the share, or all if none does; and the share.
    """
    layers = len(counts)
    every = [locations(counts)]
    usual = [cut - 1 for cut in AdaptInfer().schedule(layers, _FINE, None)]
    every += [usual] if usual != every[0] else []
    if share is None:
        return every, (1 + max((found[0] + 1) / layers for found in every)) / 2
    return [found for found in every if (found[0] + 1) / layers < share] or every, share


def _shares(found: Sequence[int], ratio: float, layers: int, share: float) -> tuple[float, ...]:
    """Shares of all layers with the mean `share`, where each cut leaves `ratio` of the one before.

    Raises:
        BudgetError: the layers before the first cut alone cost more.
    """
    cuts = [location + 1 for location in found]
    # Only proportions count, but a share of 1 would be no cut.
    falling = stairs(cuts, [0.5 * ratio**number for number in range(len(cuts))], layers)
    schedule = meet("adaptinfer", falling, _FINE, share * _FINE, earlier="other questions")
    return tuple(count / _FINE for count in tokens_per_layer(layers, _FINE, schedule))


@dataclass(frozen=True)
class _Trial(AdaptInfer):
    """Given shares, ranked as `adaptinfer` ranks."""

    name: ClassVar[str] = "adaptinfer-trial"
    summary: ClassVar[str] = "keeps given shares"

    shares: tuple[float, ...] = ()

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """Counts of the shares."""
        return cut(self.shares, tokens)


@dataclass(frozen=True)
class _Watching(DecoderMethod):
    """Drops nothing and looks at all layers."""

    name: ClassVar[str] = "adaptinfer-calibration"
    summary: ClassVar[str] = "looks at what text attends to"

    seen: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Layer -> [V] for each picture."""

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """All tokens in all layers; the largest key tells `keep` which layer is the last."""
        self.seen.setdefault(layers - 1, [])
        return dict.fromkeys(range(1, layers), tokens)

    def score(self, view: LayerView) -> Tensor:
        """[V] in the layer that just ran."""
        return self._looked_at(view, "previous")

    def keep(self, view: LayerView, count: int) -> Tensor:
        """All places."""
        self.seen[view.layer - 1].append(self._looked_at(view, "previous"))
        if view.layer == max(self.seen):
            self.seen[view.layer].append(self._looked_at(view, "this"))
        return torch.arange(len(view.visual), device=view.visual.device)

    def _looked_at(self, view: LayerView, of: Any) -> Tensor:
        if len(view.text) == 0:
            raise VLMCompressError("calibration needs text after the picture, but there is none")
        return view.attention(rows="text", of=of).mean(dim=(0, 1))[view.visual].cpu()
