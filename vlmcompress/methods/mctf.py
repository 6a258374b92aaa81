"""MCTF: similar, little attended and small tokens merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError
from vlmcompress.methods.contracts.before_projector import EncoderView
from vlmcompress.methods.contracts.method import share_kept
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.methods.shared.token_merging import Crowd, Merger
from vlmcompress.ops.merge import positive, three_factor
from vlmcompress.tokens import Grid, VisualTokens


@dataclass(frozen=True)
class MCTF(Merger):
    """Pairs are weighed by three factors at once and merged in both directions.

    A group is the mean of its members by attention received times size. Official code:
    mlvlab/MCTF. The same number in every layer but the first, solved for the budget, where the
    paper has 16 in layers 1 to 11 of DeiT-S.

    Deviations, besides those of `Merger`:
        Attention is that of the layer that just ran, where the paper looks one step ahead and
        merges the attention map itself, too.
        Protected tokens stay alone at odd positions, too. Pooling by maximum is left out.
        After the projector features are compared, and attention is what the patches of each token
        receive in the tower (deepest layer collected; none counts where a model gives none); that
        of a group is the sum of its members'.
    """

    name: ClassVar[str] = "mctf"
    paper: ClassVar[str] = "arXiv 2403.10030"
    summary: ClassVar[str] = "merges similar tokens that are small and little attended"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention|"})

    tau_similarity: float = 1.0
    """Temperatures, 1e-6 or more: the higher, the less a factor counts."""
    tau_attention: float = 20.0
    tau_size: float = 40.0
    both_ways: bool = True
    """Whether half of the merges go from odd to even positions."""
    means: Literal["attention", "size", "plain"] = "attention"
    """Weights of the means: attention times size, size, or none."""
    floor: int = 10
    """Fewer tokens than this are never left by the tower (or all of a smaller grid)."""
    proportional: bool = True
    """Whether later layers of the tower attend to a token in proportion to its size."""

    def __post_init__(self) -> None:
        taus = ("tau_similarity", "tau_attention", "tau_size")
        check_fields(self, floor="(0, inf)", **dict.fromkeys(taus, TEMPERATURE))

    @property
    def asks(self) -> frozenset[str]:
        """Nothing in the tower, which shows its attention layer by layer."""
        return frozenset() if self.stage == "encoder" else self.needs

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """min(N, round(budget)).

        Raises:
            BudgetError: no budget, or in the tower one below `floor`.
        """
        count = share_kept(self.name, grid, budget)
        least = min(self.floor, len(grid)) if self.stage == "encoder" else 0
        if count < least:
            raise BudgetError(
                f"mctf leaves at least {least} tokens of a grid of {grid}, got {budget:g}: lower "
                "its option floor"
            )
        return count

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        """The same number in every layer but the first."""
        return self.constant(range(min(1, layers - 1), layers), tokens, keep)

    def seen(self, view: EncoderView) -> Crowd:
        """Keys, and the attention of the layer that just ran."""
        return Crowd(view.keys(), view.sizes, view.received())

    def attended(self, tokens: VisualTokens) -> Tensor:
        """[1, N] float32; ones where the model gives none."""
        received = tokens.encoder_attention
        if not received:
            return torch.ones_like(tokens.features[None, :, 0], dtype=torch.float32)
        return check_signal("encoder_attention", received[max(received)], tokens)[None]

    def match(self, crowd: Crowd, remove: int) -> Tensor:
        """[B, n] leaders."""
        assert crowd.attention is not None
        return three_factor(
            crowd.metric,
            crowd.attention,
            crowd.sizes,
            remove,
            crowd.protected,
            temperatures=(self.tau_similarity, self.tau_attention, self.tau_size),
            both_ways=self.both_ways,
        )

    def weights(self, crowd: Crowd) -> Tensor:
        """[B, n] by the option `means`."""
        assert crowd.attention is not None
        if self.means == "plain":
            return torch.ones_like(crowd.sizes)
        return crowd.sizes * (positive(crowd.attention) if self.means == "attention" else 1)
