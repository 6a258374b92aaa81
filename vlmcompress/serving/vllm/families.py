"""The pruning models: vLLM's own classes with ours before them, made when vLLM asks for one.

`families.LlavaForConditionalGeneration` is the class that is registered for that architecture.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.serving.vllm.family import Family


class Llava(Family):
    """One square grid per image, from a CLIP or SigLIP tower."""

    adapter = "llava"
    renames = {r"^((model\.)?vision_tower\.)(?!vision_model\.)": r"\1vision_model."}  # noqa: RUF012

    def check_config(self, config: Any) -> None:
        kind = config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModelError(f"a LLaVA with a {kind} cannot be served: its grids vary")


class Qwen2_5VL(Family):
    """Images and clips of any size, positions with three axes."""

    adapter = "qwen2_5_vl"
    modalities = ("image", "video")
    renumbers = False
    tower, attention, projection = "visual.blocks", "attn", "qkv"


FAMILIES: dict[str, type[Family]] = {
    "LlavaForConditionalGeneration": Llava,
    "Qwen2_5_VLForConditionalGeneration": Qwen2_5VL,
}


@cache
def family_of(architecture: str) -> Family:
    """What a model of an architecture is like."""
    return FAMILIES[architecture]()


def __getattr__(name: str) -> Any:
    if name in FAMILIES:
        return _made(name)
    raise AttributeError(name)


@cache
def _made(architecture: str) -> type:
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from vlmcompress.serving.vllm.compat import mend_cpu_runner
    from vlmcompress.serving.vllm.model import Pruned
    from vlmcompress.serving.vllm.processor import pruning

    mend_cpu_runner()
    base, family = ModelRegistry.models[architecture].load_model_cls(), family_of(architecture)
    factories = base._processor_factory
    made = type(
        architecture,
        (Pruned, base),
        {"family": family, "supports_mrope": True, "__module__": __name__, **family.mapper(base)},
    )
    registered: type = MULTIMODAL_REGISTRY.register_processor(
        pruning(factories.processor, family),
        info=factories.info,
        dummy_inputs=factories.dummy_inputs,
    )(made)
    return registered
