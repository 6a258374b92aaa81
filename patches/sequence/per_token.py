"""Arguments of a decoder that have an entry for each token, such as embeddings for each layer.

Which they are is told by their shape: what the engine knows by name is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlmcompress.ops.gather import take
from vlmcompress.patches.sequence.cache_state import Slots
from vlmcompress.patches.sequence.deepstack import DEEPSTACK

_OF_DECODER = ("inputs_embeds", "position_ids", "attention_mask", *DEEPSTACK)
_OF_LAYER = ("hidden_states", "attention_mask", "position_embeddings")


def kept_of(arguments: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    """Those of a decoder's arguments that follow the tokens kept at `index` [B, K]."""
    size = arguments["inputs_embeds"].shape[:2]
    return {
        name: take(value, index)
        for name, value in arguments.items()
        if name not in _OF_DECODER and isinstance(value, Tensor) and value.shape[:2] == size
    }


@dataclass
class PerToken:
    """The same of its layers, behind a cut."""

    batch: int
    width: int
    """Tokens that the first layer is given."""
    end_of_text: int | None = None
    """What fillers get where token ids are given, so that no n-gram is read across them."""
    _done: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Of a cut and an argument -> that, which so stays alive, and what follows from it."""

    def follow(self, arguments: dict[str, Any], cut: Slots) -> dict[str, Any]:
        """A layer's arguments by name, for the tokens that `cut` left."""
        return {
            name: value if name in _OF_LAYER else self._follow(name, value, cut)
            for name, value in arguments.items()
        }

    def _follow(self, name: str, value: Any, cut: Slots) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != self.width:
            return value
        if len(value) not in (1, self.batch):
            return value
        key = id(cut), id(value)
        if key not in self._done:
            kept = take(value, cut.index)
            if (
                name.endswith("input_ids")
                and cut.valid is not None
                and self.end_of_text is not None
            ):
                kept = kept.where(cut.valid, self.end_of_text)
            self._done[key] = value, kept
        return self._done[key][1]
