"""HAWK: tokens that the heads of the first decoder layer match with the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.published_tables import published
from vlmcompress.ops.apportion import rounded_up
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.ranking import best
from vlmcompress.tokens import Grid, VisualTokens

PUBLISHED = Path(__file__).parent / "data" / "hawk.json"
"""Name of a model -> weights of the heads of its first decoder layer."""


@dataclass(frozen=True)
class Hawk(Selector):
    """Keep the tokens whose keys match the question's queries in the first decoder layer.

    Per head the products of query and key, without rotary embedding, mean over the words, are
    scaled to length 1 over the tokens of the image, signed and without a softmax; a token scores
    their weighted sum over heads. Official code: peppery77/HAWK.

    The paper weighs heads by what a model loses on a few benchmarks without each: its weights for
    Qwen2.5-VL-7B are `weights="qwen2.5-vl-7b"`. For other models there are none, and its
    calibration cannot be repeated, as its sets are not public: by default all heads weigh the same
    (ours), which is not what the paper measured.

    Deviations:
        The query rows are the words of the instruction that `text` gives other methods, not all up
        to the end of the turn.
        What is not finite is an error; the official code takes it for 0.
        Each image of a prompt is scaled by itself.
    """

    name: ClassVar[str] = "hawk"
    paper: ClassVar[str] = "arXiv 2604.07812"
    summary: ClassVar[str] = "keeps what heads of the first decoder layer match with the question"
    needs: ClassVar[frozenset[str]] = frozenset({"question_logits"})

    ratio: float = 0.2
    """Share kept when no budget is given; in (0, 1]. The paper also has 0.4 and 0.1."""
    weights: str | tuple[float, ...] | None = None
    """Of the heads: a model of which they are published, a number for each, or None for all
    alike."""
    normalization: Literal["l2", "softmax", "minmax"] = "l2"
    """How the products of a head are scaled over the tokens."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")
        known = published(PUBLISHED)
        if isinstance(self.weights, str) and self.weights not in known:
            raise VLMCompressError(
                f"hawk: weights are published for {', '.join(known)}, got {self.weights!r}"
            )
        given = self.weights if isinstance(self.weights, tuple) else ()
        if not all(math.isfinite(weight) for weight in given):
            raise VLMCompressError(f"hawk: weights must be finite, got {self.weights}")

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """ceil(ratio * N) without a budget, at least 1."""
        if budget is None:
            return max(1, rounded_up(self.ratio * len(grid)))
        return super().keep_count(grid, budget)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        logits = tokens.question_logits
        if logits is None or len(logits) != len(tokens.grid):
            raise VLMCompressError("hawk needs question_logits of every token, there are none")
        check_finite(tokens.features)
        logits = logits.detach().to(tokens.features.device, torch.float32)
        expect(
            logits.isfinite().all(),
            lambda: VLMCompressError("hawk: question_logits must be finite, some are not"),
        )
        weights = torch.tensor(self._of_heads(logits.shape[1]), device=logits.device)
        return best(self._scaled(logits) @ weights, max(0, min(count, len(logits))))

    def _scaled(self, logits: Tensor) -> Tensor:
        """[N, H], each head over the tokens."""
        if self.normalization == "softmax":
            return logits.softmax(dim=0)
        if self.normalization == "l2":
            return torch.nn.functional.normalize(logits, dim=0)
        low, high = logits.aminmax(dim=0)
        return torch.where(high > low, (logits - low) / (high - low), 0.0)

    def _of_heads(self, heads: int) -> Sequence[float]:
        if self.weights is None:
            return [1 / heads] * heads
        found: Sequence[float] = ()
        if isinstance(self.weights, tuple):
            found = self.weights
        elif self.weights is not None:
            found = published(PUBLISHED)[self.weights]["heads"]
        if len(found) != heads:
            raise VLMCompressError(
                f"hawk: the first decoder layer of this model has {heads} heads, got "
                f"{len(found)} weights"
            )
        return found
