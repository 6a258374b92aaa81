"""Questions about images and videos as inputs of a model, and its answers as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from vlmcompress.budget.clock import now
from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.media.video import Video
from vlmcompress.patches.families.registry import FAMILIES, RETRIEVERS, family_of
from vlmcompress.patches.hooks.arguments import caches_in

Turn = Mapping[str, Any]
"""One turn of a conversation, as chat templates take it:
`{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]}`."""

Prompt = tuple[Sequence[Image | Video], str | Sequence[Turn]]
"""Images and videos in order, and the question behind them; or a conversation that says where each
of them stands."""


def prepare(model: Any, processor: Any, prompts: Sequence[Prompt]) -> Any:
    """One batch of `generate`'s inputs, padded on the left, on the model's device.

    Args:
        model: of a supported family.
        processor: its own; the chat template of it is used.
        prompts: one a row. Either none or all rows hold videos.

    Returns:
        What the processor gives; pixels in the model's dtype.

    Raises:
        UnsupportedModelError: the model answers no questions, takes no videos, or none together
            with images.
        VLMCompressError: the processor is none, or it or its chat template refuses.
    """
    clips = [one for media, _ in prompts for one in media if isinstance(one, Video)]
    images = [[one for one in media if not isinstance(one, Video)] for media, _ in prompts]
    _check_family(model, bool(clips))
    _check_processor(processor)
    given: dict[str, Any] = {
        "text": [_chat(processor, prompt) for prompt in prompts],
        "return_tensors": "pt",
    }
    if len(prompts) > 1:
        given |= {"padding": True, "padding_side": "left"}
    if any(images):
        given["images"] = images
    if clips:
        given |= _video_arguments(processor, prompts)
    if any(images) and clips:
        _check_mixture(processor)
    try:
        inputs = processor(**given)
    except ValueError as error:
        raise VLMCompressError(f"the model's processor refuses the input: {error}") from error
    check_length(model, inputs["input_ids"])
    inputs = inputs.to(model.device)
    for name in inputs:
        # Times of frames are floats as well, and half precision would shift positions.
        if name.startswith("pixel_values"):
            inputs[name] = inputs[name].to(model.dtype)
    return inputs


def check_length(model: Any, ids: torch.Tensor) -> None:
    """Raise where the words of a prompt are more than the model can read.

    Placeholders do not count: they may be few by the time that the decoder reads them.

    Args:
        model: of a supported family.
        ids: [B, L] int64, the prompts.

    Raises:
        VLMCompressError: they are.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    pictures = torch.tensor([*family_of(model).placeholders(model).values()])
    words = int((~torch.isin(ids.cpu(), pictures)).sum(1).max())
    if isinstance(longest, int) and words > longest:
        raise VLMCompressError(
            f"a prompt of {words} tokens beside its pictures is too long: the model reads at most "
            f"{longest}"
        )


@dataclass(frozen=True)
class Generated:
    """What `generate` gave for a batch."""

    texts: list[str]
    """The answer of each row, without prompt, special tokens, and blanks at both ends."""
    ids: torch.Tensor
    """[B, new tokens] int64; rows that ended early are padded."""
    milliseconds: float
    """Wall time of `generate`, a selection inside it included."""
    cache: Any = None
    """The KV cache, where `keep_cache` was set."""


def generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    keep_cache: bool = False,
    **generation: Any,
) -> Generated:
    """Let a model, compressed or not, answer a batch of prompts.

    Args:
        model: of a supported family.
        processor: its own; decodes.
        inputs: of `prepare`, padded on the left.
        keep_cache: for another turn that goes on from it.
        generation: arguments of the model's `generate`; without any it is greedy.

    Raises:
        VLMCompressError: the model is compressed, and the method or budget refuses these inputs.
    """
    start = now(model.device)
    with torch.inference_mode():
        kept = {"return_dict_in_generate": True} if keep_cache else {}
        output = model.generate(**inputs, **{"do_sample": False, **kept, **generation})
    spent = now(model.device) - start
    ids, cache = output, None
    if keep_cache:
        ids = output.sequences
        (cache,) = caches_in(output)
    new = ids[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return Generated([text.strip() for text in texts], new, spent, cache)


def _chat(processor: Any, prompt: Prompt) -> str:
    """The model's own chat format; before a question go its pictures, in the order given."""
    media, turns = prompt
    if isinstance(turns, str):
        content = [{"type": "video" if isinstance(one, Video) else "image"} for one in media]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": turns}]}]
    try:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    except ValueError as error:
        raise VLMCompressError(f"the model's chat template does not work: {error}") from error


def _video_arguments(processor: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Frames as they were sampled, with their times, and nothing left to changing defaults."""
    rows = [[one for one in media if isinstance(one, Video)] for media, _ in prompts]
    arguments: dict[str, Any] = {
        "videos": [[clip.frames for clip in clips] for clips in rows],
        "video_metadata": [clip.metadata() for clips in rows for clip in clips],
        "do_sample_frames": False,
    }
    settings = processor.video_processor
    if hasattr(settings, "cap_pixels_per_frame"):
        arguments["cap_pixels_per_frame"] = bool(settings.cap_pixels_per_frame)
    return arguments


def _check_family(model: Any, clips: bool) -> None:
    family = family_of(model)
    if family.name in RETRIEVERS.names():
        raise UnsupportedModelError(
            f"{type(model).__name__} answers no questions: vlmcompress.embed gives its vectors"
        )
    if clips and not family.video:
        able = ", ".join(name for name, kind in FAMILIES.items() if kind.video)
        raise UnsupportedModelError(
            f"{family.name} models take images but no videos; families that take both: {able}"
        )


def _check_processor(processor: Any) -> None:
    """A tokenizer would leave out the pictures without a word."""
    if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "tokenizer"):
        raise VLMCompressError(
            f"{type(processor).__name__} is no processor of a vision-language model: give the "
            "model's own, as vlmcompress.load does"
        )


def _check_mixture(processor: Any) -> None:
    """SmolVLM's processor has one place for pixels, so that clips overwrite images."""
    parts = processor.image_processor, processor.video_processor
    if set.intersection(*(set(part.model_input_names) for part in parts)):
        raise UnsupportedModelError(
            f"{type(processor).__name__} takes images or videos in one prompt, not both"
        )
