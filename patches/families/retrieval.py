"""Late-interaction retrievers: a VLM without LM head, and a projection to one vector a token.

What users hold calls the base model (`vlm`) and multiplies the vectors by the attention mask of the
prompt as it was, which `patches/call/output_mask.py` does for the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.families.family import Family, _expect, square
from vlmcompress.patches.families.generic import token_of
from vlmcompress.patches.families.vision_encoders import ModernVBertEncoder, PaliGemmaEncoder
from vlmcompress.patches.families.vision_encoders_packed import QwenEncoder
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.tokens import Grid, Layout


class Retriever(Family):
    """What they have in common."""

    masks_output = True
    no_costs = "it has no LM head"
    inner_types: ClassVar[tuple[str, ...]]
    """Types of the base model that were tested."""

    def base(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("vlm")

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        config: Any = model.config
        found = token_of(config.vlm_config, "image")
        assert found is not None
        return {"image": found}

    def check(self, model: nn.Module) -> None:
        config: Any = model.config
        inner = config.vlm_config.model_type
        if inner not in self.inner_types:
            raise UnsupportedModelError(
                f"{self.name} is supported around {' or '.join(self.inner_types)}, this one is "
                f"around {inner}"
            )
        lm = self.language_model(self.base(model))
        _expect(self, lm, "inputs_embeds", "attention_mask", "position_ids")
        _expect(self, model, "input_ids", "attention_mask", "pixel_values")


class ColQwen2(Retriever):
    """`ColQwen2ForRetrieval`: calls the vision tower itself, and gives the base model embeddings.

    So it gives no grid to the positions: pictures have those of text, one number a token.
    """

    name = "colqwen2"
    class_name = "ColQwen2ForRetrieval"
    inner_types = ("qwen2_vl", "qwen2_5_vl")
    encoder = QwenEncoder()
    feature_calls: Mapping[str, str] = {"image": "visual._call_impl"}

    def feature_arguments(self, modality: str, call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, "image_grid_thw": call["grid_thw"]}

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        config: Any = model.config
        merge = config.vlm_config.vision_config.spatial_merge_size
        rows = on_host(call["image_grid_thw"])
        return [Layout.of(Grid(t, h // merge, w // merge)) for t, h, w in rows]


class ColPali(Retriever):
    """`ColPaliForRetrieval`: PaliGemma, one square grid a page."""

    name = "colpali"
    class_name = "ColPaliForRetrieval"
    inner_types = ("paligemma",)
    encoder = PaliGemmaEncoder()
    masks_in_base = True

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        config: Any = model.config
        vision = config.vlm_config.vision_config
        return square((vision.image_size // vision.patch_size) ** 2)


class ColModernVBert(Retriever):
    """`ColModernVBertForRetrieval`: tiles with markers between them, in front of an encoder in
    which all tokens see one another, so that it has no cache."""

    name = "colmodernvbert"
    class_name = "ColModernVBertForRetrieval"
    inner_types = ("modernvbert",)
    encoder = ModernVBertEncoder()
    text_module = "text_model"
    no_scores = "queries and keys come from one matrix"

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        base: Any = self.base(model)
        tile = Layout.of(square(base.image_seq_len))
        # One tensor for each page, with all its tiles.
        return [tile] * sum(len(tokens) // len(tile) for tokens in features)

    def continues(self, ids: list[int], pieces: list[list[int]]) -> list[bool]:
        return [number > 0 for number in range(len(pieces))]
