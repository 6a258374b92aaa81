"""Checkpoints in formats of their own, told by their config before anything else is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlmcompress.errors import UnsupportedModelError


class Original(NamedTuple):
    """A format of its authors, which transformers does not read as a model of images."""

    name: str
    instead: str
    """Checkpoints of the same models in the format of transformers."""


_LLAVA = Original("LLaVA's own", "llava-hf/llava-1.5-7b-hf or llava-hf/llava-v1.6-mistral-7b-hf")
_LLAVA_QWEN = Original("LLaVA's own", "llava-hf/llava-onevision-qwen2-7b-ov-hf")
_QWEN = Original("Qwen-VL's own", "Qwen/Qwen2-VL-2B-Instruct or Qwen/Qwen2.5-VL-7B-Instruct")

_BY_ARCHITECTURE = {
    "LlavaLlamaForCausalLM": _LLAVA,
    "LlavaMistralForCausalLM": _LLAVA,
    "LlavaMptForCausalLM": _LLAVA,
    "LlavaQwenForCausalLM": _LLAVA_QWEN,
    "InternVLChatModel": Original("InternVL's own", "OpenGVLab/InternVL3-2B-hf"),
    "QWenLMHeadModel": _QWEN,
}


def read_config(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says; nothing where it cannot be read, which is reported by who loads it.

    Args:
        where: a folder or a hub id.
        options: shared ones of `from_pretrained`.
    """
    from transformers import PretrainedConfig

    quiet = {name: value for name, value in options.items() if name != "trust_remote_code"}
    try:
        found: dict[str, Any] = PretrainedConfig.get_config_dict(where, **quiet)[0]
    except Exception:  # damaged, missing or not to be had, in any way
        return {}
    return found if isinstance(found, dict) else {}


def check_format(given: str, config: Mapping[str, Any], trusted: bool) -> None:
    """Raise unless transformers knows the format by itself.

    Args:
        given: name of the model, for the message.
        config: of `read_config`.
        trusted: whether the user lets code of the checkpoint run.

    Raises:
        UnsupportedModelError: it does not; the message names checkpoints to take instead.
    """
    named = config.get("architectures")
    for name in named if isinstance(named, list) else []:
        original = _BY_ARCHITECTURE.get(name) if isinstance(name, str) else None
        if original is not None:
            raise UnsupportedModelError(
                f"model {given!r} is in {original.name} format ({name}): take a checkpoint in the "
                f"format of transformers, such as {original.instead}"
            )
    if config.get("auto_map") and not trusted and not _is_known(config.get("model_type")):
        raise UnsupportedModelError(
            f"model {given!r} comes with code of its own (model_type "
            f"{config.get('model_type')!r}), which is not run: take a checkpoint in the format of "
            "transformers, whose name mostly ends in -hf"
        )


def _is_known(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING
