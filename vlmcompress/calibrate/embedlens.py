"""Finds the words that tokens without content lie next to, for `EmbedLens.table`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmcompress.api import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.embedlens import WordTable
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.nearest_rows import nearest_rows
from vlmcompress.tokens import Grid, VisualTokens

TOKENS = 0.05
"""Share of all tokens that a word must be near to be a candidate ..."""
IMAGES = 0.5
"""... and of all images in which it must be near some token. Ours for "most"."""
NORM = 1.5
"""Tokens near a sink word are so many times as long as the mean token. Ours."""


@dataclass
class Tally:
    """What a number of images say about the words of a vocabulary."""

    nearest: int = 3
    words: int | None = None
    images: int = 0
    tokens: int = 0
    in_tokens: Counter[int] = field(default_factory=Counter)
    in_images: Counter[int] = field(default_factory=Counter)
    norms: Counter[int] = field(default_factory=Counter)
    """Sum over the tokens near a word of their length, as a share of the mean of their image."""
    attention: Counter[int] = field(default_factory=Counter)
    """Sum over the tokens near a word of the attention that they receive in the vision tower, as a
    share of the mean of their image; empty where the tower gives none."""

    def add(self, tokens: VisualTokens) -> None:
        """Count one image, or one tile of it."""
        assert tokens.vocabulary is not None
        self.words = len(tokens.vocabulary)
        ids = nearest_rows(tokens.features, tokens.vocabulary, self.nearest)[1]
        measures = [(self.norms, tokens.features.float().norm(dim=-1))]
        if tokens.cls_attention is not None or tokens.encoder_attention:
            measures.append((self.attention, saliency(tokens)))
        near, counts = ids.unique(return_counts=True)  # type: ignore[no-untyped-call]
        self.images += 1
        self.tokens += len(ids)
        self.in_images.update(near.tolist())
        self.in_tokens.update(dict(zip(near.tolist(), counts.tolist(), strict=True)))
        for total, values in measures:
            shares = values / values.mean().clamp_min(torch.finfo(torch.float32).tiny)
            sums = torch.zeros(self.words, device=ids.device)
            sums.scatter_add_(0, ids.flatten(), shares.repeat_interleave(ids.shape[1]))
            total.update(dict(zip(near.tolist(), sums[near].tolist(), strict=True)))

    def table(self, origin: str) -> WordTable:
        """Candidates with long tokens are sink words; of the others those with little attention
        are dead words, all of them where no attention is known.

        Raises:
            VLMCompressError: no images were counted.
        """
        if not self.images:
            raise VLMCompressError("calibration of embedlens needs at least one image, got none")
        sink, dead = [], []
        for word, count in sorted(self.in_tokens.items()):
            if count < TOKENS * self.tokens or self.in_images[word] <= IMAGES * self.images:
                continue
            if self.norms[word] >= NORM * count:
                sink.append(word)
            elif not self.attention or self.attention[word] < count:
                dead.append(word)
        return WordTable(origin, self.words, tuple(sink), tuple(dead))


def calibrate_embedlens(
    model: nn.Module, inputs: Iterable[Mapping[str, Any]], origin: str, *, nearest: int = 3
) -> WordTable:
    """Look at the visual tokens of some images; about 100 are enough.

    Args:
        model: of a supported family.
        inputs: what the processor made of prompts with images; each is run through the model once.
        origin: says in the table where it is from, for example the name of the model.
        nearest: words that a token is compared with, as in `EmbedLens`.

    Raises:
        VLMCompressError: there are no images; see also `compress`.

    Source: EmbedLens, arXiv 2603.00510, section 3, in outline; the thresholds are ours.
    """
    tally = Tally(nearest)
    with compress(model, _Counting(tally)), torch.no_grad():
        for prompt in inputs:
            model(**prompt)
    return tally.table(origin)


@dataclass(frozen=True)
class _Counting(Selector):
    """Looks at all tokens of all images."""

    name: ClassVar[str] = "embedlens-calibration"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "counts the words that tokens lie next to"
    needs: ClassVar[frozenset[str]] = frozenset({"vocabulary", f"{NEED}|"})

    tally: Tally

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """All but one: a method that keeps all is not asked."""
        return len(grid) - 1

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """The first ones; what the model makes of them is not looked at."""
        self.tally.add(tokens)
        return torch.arange(count, device=tokens.features.device)
