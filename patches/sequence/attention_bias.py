"""What is added to attention logits where tokens stand for several, or for those that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.sequence.attention_masks import CHUNKED, FULL, SLIDING, LayerKinds


@dataclass(frozen=True)
class TokenBias:
    """Of one forward, for the tokens of all rows of a batch."""

    sizes: Tensor
    """[B, 2, C] float32 by virtual column: ln of what each token stands for, in layer 0 and in all
    others. Columns further on hold plain tokens."""
    distant: Tensor | None = None
    """[B, Q] bool: slots of the chunk at the first stage whose logits fade less with distance."""
    positions: Tensor | None = None
    """[B, Q] where those slots are."""
    frequencies: Mapping[str, Tensor] | None = None
    """Kind of layer -> rotary frequencies; None where distance does not matter."""

    def of(self, layer: int, kind: str, keys: Tensor, slots: Tensor) -> Tensor:
        """[B, 1, Q or 1, P + Q] float32: what a layer adds to its logits.

        Args:
            layer: its number.
            kind: of the layer.
            keys: [B, P + Q] virtual columns of cached keys and of the chunk's.
            slots: [B, Q] the chunk's at the current stage, as at the first.
        """
        known = self.sizes[:, 0 if layer == 0 else 1]
        inside = keys.clamp(max=known.shape[1] - 1)
        added = known.gather(1, inside).where(keys < known.shape[1], 0.0)[:, None]
        if self.distant is not None and self.positions is not None and self.frequencies is not None:
            own = closer(self.positions.gather(1, slots), self.frequencies[kind])
            own = own.where(self.distant.gather(1, slots)[..., None], 0.0)
            past = own.new_zeros(*own.shape[:2], keys.shape[1] - own.shape[2])
            added = added + torch.cat([past, own], dim=2)
        return added[:, None]

    def rows(self, rows: Tensor) -> TokenBias:
        """The sizes of the batch rows `rows`, for beams; a cache remembers nothing else."""
        return TokenBias(self.sizes[rows.to(self.sizes.device)])

    def until(self, length: int) -> TokenBias:
        """The sizes of the first `length` columns."""
        return TokenBias(self.sizes[:, :, :length])


def closer(positions: Tensor, frequencies: Tensor) -> Tensor:
    """ln(2 - c), c the mean over frequencies of the cosine of distance times frequency.

    Args:
        positions: [B, Q] any dtype.
        frequencies: [F].

    Returns:
        [B, Q, Q] float32, 0 where the distance is 0.
    """
    with torch.autocast(positions.device.type, enabled=False):
        # From the first on, where large positions would lose what float32 holds.
        turns = (positions - positions[:, :1]).float()[..., None] * frequencies.float()
        waves = torch.cat([turns.cos(), turns.sin()], dim=-1)
        alike = (waves @ waves.mT / len(frequencies)).clamp(max=1.0)
    return (2 - alike).log()


def check_made_here(lm: Any, kinds: LayerKinds, what: str) -> None:
    """Refuse what needs masks of ours where some layers take none.

    Raises:
        UnsupportedModelError: FlashAttention, or layers that are no plain attention; says `what`.
    """
    if kinds.flash:
        raise UnsupportedModelError(
            f"{what}, which {lm.config._attn_implementation} cannot take: use eager or sdpa"
        )
    others = sorted(set(kinds.names) - {FULL, SLIDING, CHUNKED})
    if others:
        found = ", ".join(others)
        raise UnsupportedModelError(
            f"{what} in every layer, and this decoder has layers of another kind: {found}"
        )


def check_bias(lm: Any, kinds: LayerKinds, distance: bool, name: str) -> None:
    """Refuse a bias where a decoder cannot take it.

    Args:
        lm: the decoder stack.
        kinds: of its layers.
        distance: whether distances matter.
        name: of the method.

    Raises:
        UnsupportedModelError: FlashAttention, layers that are no attention, or no rotary
            frequencies.
    """
    check_made_here(lm, kinds, f"{name} adds a bias to attention logits")
    if distance:
        frequencies_of(lm, kinds, name)


def frequencies_of(lm: Any, kinds: LayerKinds, name: str) -> dict[str, Tensor]:
    """Kind of layer -> [F] rotary frequencies.

    Raises:
        UnsupportedModelError: the decoder has none, or keeps them elsewhere.
    """
    rotary: nn.Module | None = getattr(lm, "rotary_emb", None)
    found = {}
    for kind in set(kinds.names):
        own = getattr(rotary, f"{kind}_inv_freq", getattr(rotary, "inv_freq", None))
        if not isinstance(own, Tensor) or own.dim() != 1:
            raise UnsupportedModelError(
                f"{name} corrects the decay of attention over distance, and {type(lm).__name__} "
                "has no rotary frequencies: give distance=False"
            )
        found[kind] = own
    return found
