"""Models inside something else: taken out where that changes nothing, named where it would."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedModelError


def taken_out(given: Any) -> Any:
    """The model to hook, where what is given runs exactly this object; else `given` itself.

    A pipeline calls its model, and a PeftModel of LoRA or the like calls the base model into whose
    layers it put its own.

    Raises:
        UnsupportedModelError: it runs copies of the model, adds to what the model is given, or is
            several things; the message names what to pass.
    """
    if isinstance(given, tuple | list):
        raise UnsupportedModelError(
            f"{len(given)} things are given where one model belongs: model, processor = "
            "vlmcompress.load(...), then compress(model, ..., processor=processor)"
        )
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(given).__mro__}
    if ("transformers", "Pipeline") in kinds:
        return given.model
    if ("peft", "PeftModel") in kinds:
        return _adapted(given)
    if ("torch", "DataParallel") in kinds:
        raise UnsupportedModelError(
            "DataParallel runs copies of the model, which hooks cannot follow: compress its "
            ".module, and use one process a device (accelerate launch)"
        )
    if kinds & {("torch", "DistributedDataParallel"), ("torch", "FullyShardedDataParallel")}:
        raise UnsupportedModelError(
            f"{type(given).__name__} wraps a model for training: compress its .module"
        )
    return given


def _adapted(given: Any) -> Any:
    """The base model of a PeftModel whose adapters are inside its layers."""
    config = given.active_peft_config
    if getattr(config, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{type(given).__name__} with {config.peft_type} puts tokens of its own before the "
            "prompt: only adapters inside layers, such as LoRA, go with dropping tokens"
        )
    inside = given.get_base_model()
    return inside if isinstance(inside, nn.Module) else given
