"""Token-level correlation-guided compression: fewer tokens for tiles that repeat themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import AskingSelector, share_kept
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.ops.apportion import apportion
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best, ranks
from vlmcompress.ops.similarity import self_cosines, unit_rows
from vlmcompress.tokens import Grid, VisualTokens


@dataclass(frozen=True)
class TokenCorrelation(AskingSelector):
    """Experimental. Tiles keep tokens by how little they repeat themselves, the most attended ones.

    A token is redundant if its key is alike to those of many others of its tile, and is not the
    first of them. The share that is not redundant is the density of the tile. Inside a tile the
    tokens stay that rank high in an early or in a late layer by attention of CLS (attention
    received where there is no CLS).

    Deviations:
        The paper gives no numbers and no code was released: thresholds, layers and all details are
        ours. So is the budget, shared out in proportion to density times tokens by the largest
        remainder, and that every frame of a clip counts as a tile.
    """

    name: ClassVar[str] = "token-correlation"
    paper: ClassVar[str] = "arXiv 2407.14439"
    summary: ClassVar[str] = "keeps fewer of tiles that repeat themselves (experimental)"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"layer_keys", "layer_cls_attention|encoder_attention"}
    )
    adaptive: ClassVar[bool] = True
    across_parts: ClassVar[bool] = True

    threshold: float = 0.9
    """Cosine of keys above which tokens are alike; in [-1, 1]. Ours."""
    share: float = 0.05
    """Of the tokens of a tile: so many others must be alike to a redundant one. In [0, 1]. Ours."""
    early: int = 3
    """The early layer, 0-based; the late one is the feature layer, keys are from half-way. Ours."""

    def __post_init__(self) -> None:
        check_fields(self, threshold="[-1, 1]", share="[0, 1]", early="[0, inf)")

    def encoder_layers(self, depth: int, whole: Sequence[int]) -> Collection[int]:
        """The early layer, that of the keys and the late one, as far as they differ.

        In shallow towers they move together. `select` takes the first, the middle and the last.
        """
        late = whole[-1]
        middle = max((n for n in whole[:-1] if n <= depth // 2), default=whole[0])
        early = min((n for n in whole if self.early <= n <= middle), default=middle)
        return sorted({early, middle, late})

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """All tokens without a budget, of which `select` keeps the density of each tile."""
        return len(grid) if budget is None else share_kept(self.name, grid, budget)

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending; the density of each tile where all tokens are asked for."""
        check_finite(tokens.features)
        keys, (early, late) = self._signals(tokens)
        parts = tokens.parts or (tokens.grid,)
        sizes = [grid.h * grid.w for grid in parts for _ in range(grid.t)]
        tiles = [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
        most = torch.tensor(sizes)
        dense = (yield torch.stack([self.density(keys[tile]) for tile in tiles]).float()) * most
        if count >= len(tokens.features):
            counts = dense.round().long().clamp_min(1)
        else:
            counts = apportion(max(0, count) * dense / dense.sum(), max(0, count), most)
        picked = [
            best(torch.maximum(ranks(early[tile]), ranks(late[tile])), number) + tile.start
            for tile, number in zip(tiles, counts.tolist(), strict=True)
            if number
        ]
        return torch.cat(picked) if picked else torch.zeros_like(keys[:0, 0], dtype=torch.long)

    def density(self, keys: Tensor) -> Tensor:
        """The share of the tokens of a tile [n, D] that is not redundant; above 0, float64."""
        unit = unit_rows(keys, "keys")
        with torch.autocast(unit.device.type, enabled=False):
            alike = (self_cosines(unit) > self.threshold).fill_diagonal_(False)
        redundant = alike.sum(1) >= self.share * len(keys)
        # The first of those that are alike stands for the others.
        spared = ~(alike.tril() & redundant).any(1)
        return 1 - (redundant & ~spared).sum().double() / len(keys)

    def _signals(self, tokens: VisualTokens) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Keys [N, D] of the middle layer, and attention [N] of the first and the last."""
        keys: Mapping[int, Tensor] = tokens.layer_keys or {}
        name = "encoder_attention" if tokens.layer_cls_attention is None else "layer_cls_attention"
        seen: Mapping[int, Tensor] = getattr(tokens, name) or {}
        if not (keys and seen):
            raise VLMCompressError(
                f"{self.name} needs layer_keys, and layer_cls_attention or encoder_attention"
            )
        middle = sorted(keys)[(len(keys) - 1) // 2]
        ends = (check_signal(name, seen[layer], tokens) for layer in (min(seen), max(seen)))
        early, late = ends
        return keys[middle].to(tokens.features.device), (early, late)
