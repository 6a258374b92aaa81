"""What the decoder is given for a prompt, taken before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.sequence.attention_masks import FULL, has_keys
from vlmcompress.patches.sequence.call_trace import Solved

NAMES = ("inputs_embeds", "attention_mask", "position_ids")
"""What `generate` can be given in the place of a prompt."""
_ITS_OWN = ("cache_position",)
"""What `generate` makes by itself."""


class _Taken(BaseException):
    """Ends a forward where the decoder would begin; no fault, so that nobody handles it."""

    def __init__(self, given: Mapping[str, Any], solved: Solved | None) -> None:
        super().__init__()
        self.given, self.solved = given, solved


def check_takes_embeddings(model: nn.Module) -> None:
    """Raise where the generation of a model begins with token ids only.

    Raises:
        UnsupportedModelError: that is so.
    """
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None or "inputs_embeds" not in inspect.signature(prepare).parameters:
        raise UnsupportedModelError(f"generate() of {type(model).__name__} takes no inputs_embeds")


def check_says_all(installed: Installed) -> None:
    """Raise where embeddings, positions and a mask do not say all that the decoder needs.

    Raises:
        UnsupportedCallError: the method goes on inside the decoder.
        UnsupportedModelError: some layers count distances between tokens, and would count them in
            the shortened prompt, or attend in a way that only hooks keep up.
    """
    pipeline, kinds = installed.planner.pipeline, installed.kinds
    if pipeline.decoder is not None or pipeline.enters_late or pipeline.attention_bias is not None:
        raise UnsupportedCallError(
            f"{pipeline.name} goes on inside the decoder, where nothing of ours will be: take a "
            "method that acts before it, such as divprune"
        )
    others = sorted({name for name in kinds.names if has_keys(name)} - {FULL})
    if installed.family.masks_in_base or kinds.both_ways:
        others = ["images that attend to themselves"]
    if others:
        raise UnsupportedModelError(
            f"{type(installed.model).__name__} has {', '.join(others)}: what a token sees of a "
            "shortened prompt is right inside compress() only"
        )


def decoder_inputs(installed: Installed, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Embeddings, mask and positions of shortened prompts; no layer of the decoder runs.

    Args:
        installed: on a model whose hooks are on.
        inputs: of a forward of it.

    Returns:
        `inputs_embeds` [B, L, D], `attention_mask` [B, L] int64, padded on the left, and
        `position_ids` as the decoder takes them, [B, L] or [axes, B, L].

    Raises:
        UnsupportedModelError: the decoder is given more than these, such as features for layers.
        VLMCompressError: as a forward of the compressed model.
    """
    found: Mapping[str, Any] = {}

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = installed.now
        if now.call is None:
            return  # a calibration, or a call of another thread
        if now.stages is not None:
            now.stages.checks.settle()
        raise _Taken(kwargs, installed.trace.solved)

    handle = installed.lm.register_forward_pre_hook(take, with_kwargs=True)
    try:
        with torch.no_grad():
            installed.model(**inputs)
    except _Taken as taken:
        found = taken.given
        installed.trace.solved = taken.solved  # which a call that ends so has met, all the same
    finally:
        handle.remove()
    return _checked(installed.model, found)


def _checked(model: nn.Module, found: Mapping[str, Any]) -> dict[str, Tensor]:
    more = [
        name
        for name, value in found.items()
        if isinstance(value, (Tensor, list, tuple)) and name not in (*NAMES, *_ITS_OWN)
    ]
    if more:
        raise UnsupportedModelError(
            f"the decoder of {type(model).__name__} is given {', '.join(more)}, too, which "
            "generate() does not take"
        )
    embeds, positions = found["inputs_embeds"], found["position_ids"]
    mask = found.get("attention_mask")
    if mask is None:
        mask = torch.ones(embeds.shape[:2], device=embeds.device)
    return {"inputs_embeds": embeds, "attention_mask": mask.long(), "position_ids": positions}
