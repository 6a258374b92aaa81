"""VScan, before the decoder: half of the tokens by windows, half globally, and the rest merged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Reducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.per_frame import select_by_frame
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.ops.anchors import means, nearest_anchor
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.groups import grouped
from vlmcompress.ops.ranking import best, ranks
from vlmcompress.tokens import Grid, Reduction, VisualTokens

# Of the 24 x 24 tokens of LLaVA-1.5, and of the merged grid of Qwen2.5-VL.
_WITH_CLS, _WITHOUT = 6, 4


@dataclass(frozen=True)
class VScanMerge(Reducer):
    """Keep what a shallow layer of the tower sees window by window, and what the deepest one sees.

    Of T tokens floor(share * T) are local, from windows of the grid by the attention of CLS in a
    shallow layer; the others are those that CLS attends to most in the deepest layer. Each dropped
    token is averaged into the kept one whose projected features are most similar. Where there is no
    CLS, attention received stands in, and windows do not share evenly: the best tokens of all are
    taken while their window has fewer than its share, rounded up. Official code: VScan in
    Tencent/SelfEvolvingAgent.

    The shallow layer is the 6th of CLIP-L and the 8th of Qwen2.5-VL as in the paper; in other
    towers (ours) the one at a quarter of the depth, of those that span the image the nearest.

    Deviations:
        What windows cannot share evenly goes to the best tokens outside; the official code for
        LLaVA keeps fewer then (98 of 100 in 16 windows).
        Rows and columns that fill no window belong to the last one, on every model; a grid smaller
        than a window is one window, where the official code fails.
        The frames of a clip are taken one by one, with even shares of the budget, and merged
        together (ours).
    """

    name: ClassVar[str] = "vscan-merge"
    paper: ClassVar[str] = "arXiv 2505.22654"
    summary: ClassVar[str] = "keeps what shallow and deep layers of the tower see, merges the rest"
    needs: ClassVar[frozenset[str]] = frozenset({"layer_cls_attention|encoder_attention"})
    on_grid: ClassVar[bool] = True

    ratio: float = 1 / 6
    """Share kept when no budget is given; in (0, 1]. 96 of 576, which `vscan-prune` makes a mean of
    64."""
    share: float = 0.5
    """Of the tokens that are kept, those from windows; 0 to 1."""
    window: int | None = None
    """Tokens along a side of a window; None for 6 where the tower has a CLS and 4 elsewhere."""
    merge: bool = True
    """Whether dropped tokens are averaged into kept ones."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", share="[0, 1]")
        if self.window is not None and self.window < 1:
            raise VLMCompressError(f"{self.name}: window must be 1 or more, got {self.window}")

    def encoder_layers(self, depth: int, whole: Sequence[int]) -> Collection[int]:
        """The shallow layer and the deepest one of `whole`."""
        shallow = min(whole, key=lambda layer: (abs(layer - depth // 4), layer))
        return {shallow, *whole[-1:]}

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; a token alone in its group has the bits that it came with."""
        grid, features = tokens.grid, tokens.features.detach()
        check_finite(features)
        with_cls = tokens.layer_cls_attention is not None
        seen = tokens.layer_cls_attention if with_cls else tokens.encoder_attention
        if not seen:
            raise VLMCompressError(
                f"{self.name} needs layer_cls_attention or encoder_attention, these tokens have "
                "neither"
            )
        name = "layer_cls_attention" if with_cls else "encoder_attention"
        shallow, deep = (check_signal(name, seen[n], tokens) for n in (min(seen), max(seen)))
        side = (_WITH_CLS if with_cls else _WITHOUT) if self.window is None else self.window
        windows, number = windows_of(grid, side)
        windows = windows.to(features.device)

        def choose(own: slice, quota: int) -> Tensor:
            half = int(self.share * quota)
            local = _local(shallow[own], windows, number, half, even=with_cls)
            rest = deep[own].index_fill(0, local, -torch.inf)
            return torch.cat([local, best(rest, quota - half)])

        kept = select_by_frame(grid, count, choose, features.device)
        return self._merged(features, kept)

    def _merged(self, features: Tensor, kept: Tensor) -> Reduction:
        if not len(kept):
            return Reduction.from_groups(features[:0], [])
        if not self.merge:
            alone = torch.arange(len(kept) + 1, device=kept.device)
            return Reduction(features[kept], kept, alone)
        nearest, made = nearest_anchor(features, kept), features.clone()
        made[kept] = means(features, nearest, len(kept)).to(made.dtype)
        return grouped(made, kept[nearest], len(kept), len(features))


def windows_of(grid: Grid, side: int) -> tuple[Tensor, int]:
    """[h * w] int64 the window of each place of a frame, the last ones with what is left over; and
    how many there are."""
    down, across = max(1, grid.h // side), max(1, grid.w // side)
    rows = (torch.arange(grid.h) // side).clamp(max=down - 1)
    columns = (torch.arange(grid.w) // side).clamp(max=across - 1)
    return (rows[:, None] * across + columns).flatten(), down * across


def _local(scores: Tensor, windows: Tensor, number: int, count: int, even: bool) -> Tensor:
    """[count] int64, ascending: the local tokens of a frame.

    Args:
        scores: [n] of its tokens.
        windows: [n] int64.
        number: of windows.
        count: of local tokens.
        even: every window gets floor(count / number) and the best others the rest; else no window
            gets more than that rounded up, as long as others can fill the count.
    """
    rank, size = ranks(scores), len(scores)
    order = (windows * size + size - 1 - rank).argsort()
    sorted_windows = windows[order]
    starts = torch.searchsorted(sorted_windows, torch.arange(number, device=order.device))
    better = torch.arange(size, device=order.device) - starts[sorted_windows]
    first = torch.empty_like(order).scatter_(0, order, better) < (
        count // number if even else -(-count // number)
    )
    return best(rank + size * first, count)
