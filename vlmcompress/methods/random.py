"""Random tokens: the baseline that many published criteria do not beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.tokens import Grid, VisualTokens

# The CPU generator reads 32 bits of a seed only, so seed and image index have to share them.
_SEEDS = 2**32
_STEP = 1_000_003
_PART = 10_007


@dataclass(frozen=True)
class Random(Selector):
    """A uniform sample without replacement.

    It depends on the seed, the place of the image in the call (and of the grid in the image) and
    the number of tokens, and on nothing else: not on the features, the device or PyTorch's global
    seed.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "keeps a random sample"

    seed: int = 0
    """0 or more."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if self.seed < 0:
            raise VLMCompressError(f"random: seed must be 0 or more, got {self.seed}")

    def goes_by(self, grid: Grid) -> bool:
        """Yes."""
        return True

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        place = tokens.index + tokens.part * _PART
        generator = torch.Generator().manual_seed((self.seed * _STEP + place) % _SEEDS)
        order = torch.randperm(len(tokens.grid), generator=generator)
        return order[:count].sort().values.to(tokens.features.device)
