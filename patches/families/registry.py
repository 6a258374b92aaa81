"""Model families by the `model_type` of their configuration."""

from __future__ import annotations

from torch import nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.generic import Generic
from vlmcompress.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "model family",
    "vlmcompress.patches.families.family:Family",
    group="vlmcompress.families",
)


for _name, _entry in {
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_next_video": "llava_next_video:LlavaNextVideo",
    "llava_onevision": "llava_onevision:LlavaOnevision",
    "video_llava": "video_llava:VideoLlava",
    "qwen2_vl": "qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "qwen2_5_vl:Qwen2_5VL",
    "qwen3_vl": "qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "qwen3_vl:Qwen3VLMoe",
    "internvl": "internvl:InternVL",
    "idefics3": "idefics3:Idefics3",
    "smolvlm": "smolvlm:SmolVLM",
    "gemma3": "gemma3:Gemma3",
    "vipllava": "vipllava:VipLlava",
    "mistral3": "mistral3:Mistral3",
}.items():
    FAMILIES.register(_name, f"vlmcompress.patches.families.{_entry}")


RETRIEVERS: Registry[Family] = Registry("retriever", "vlmcompress.patches.families.family:Family")
"""They answer no questions, so `list_models()` and the commands that ask do not know them."""

for _name, _kind in {
    "colmodernvbert": "ColModernVBert",
    "colpali": "ColPali",
    "colqwen2": "ColQwen2",
}.items():
    RETRIEVERS.register(_name, f"vlmcompress.patches.families.retrieval:{_kind}")


def family_of(model: nn.Module) -> Family:
    """The adapter for `model`, chosen by its configuration's `model_type`.

    One that was written or plugged in for that type, else the generic one.

    Raises:
        UnsupportedModelError: no adapter serves it, or a seam is missing; the message says which.
        PlugInError: an adapter of another package serves it, and is broken.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    registry = RETRIEVERS if model_type in RETRIEVERS.names() else FAMILIES
    if isinstance(model_type, str) and model_type in registry:
        family = registry.get(model_type)()
        if not isinstance(model, family.model_class()):
            raise UnsupportedModelError(
                f"{family.name}: expected a {family.model_class().__name__}, "
                f"got {type(model).__name__}"
            )
        return family
    try:
        return Generic(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {model_type!r}) is not supported: {error}; "
            "`vlmcompress ls models` lists what is"
        ) from error
