"""Gemma 3: the tokens of an image attend to one another, most layers see a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.family import Family, square
from vlmcompress.patches.families.vision_encoders import Gemma3Encoder
from vlmcompress.patches.hooks.arguments import carries_images
from vlmcompress.patches.sequence.cache_state import CacheState
from vlmcompress.tokens import Grid


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration`.

    Windows keep the distances of the whole prompt, so a layer sees the tokens that it would have
    seen, as far as they are kept.
    """

    name = "gemma3"
    class_name = "Gemma3ForConditionalGeneration"
    encoder = Gemma3Encoder()
    masks_in_base = True

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        return square(int(model.config.mm_tokens_per_image))  # type: ignore[union-attr,arg-type]

    def unmasked(self, call: Mapping[str, Any], state: CacheState) -> dict[str, Any]:
        types = call.get("token_type_ids")
        if types is None or not carries_images(dict(call)):
            return {"attention_mask": None, "token_type_ids": None}
        if len(state.stages) > 1:
            raise UnsupportedCallError(
                "a new image cannot follow on a cache whose layers hold different tokens: use a "
                "projector-stage method, or start a new cache"
            )
        length = call["input_ids"].shape[1]
        past = state.stages[0].index.shape[1] + state.tail
        # The model finds images by their place in the cache.
        chunk = types[:, -length:]
        whole = chunk.new_zeros(len(chunk), past + length)
        whole[:, past:] = chunk
        return {"attention_mask": None, "token_type_ids": whole}
