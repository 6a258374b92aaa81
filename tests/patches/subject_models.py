"""One entry for each family in `SUBJECTS`: tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
import transformers
from packaging.version import Version
from subjects import (
    BidirectionalSubject,
    DeepStackSubject,
    MarkedTileSubject,
    QwenSubject,
    Subject,
    TileSubject,
)

from vlmcompress.models.loading import load

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = TEXT | {"model_type": "llama"}
QWEN2 = TEXT | {"model_type": "qwen2"}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 16}
SIGLIP = TOWER | {"model_type": "siglip_vision_model"}
IMAGE, VIDEO = 99, 98
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_QWEN_TOWER = {"depth": 3, "patch_size": 4, "num_heads": 4, "hidden_size": 32}
_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": 97,
    "vision_end_token_id": 96,
    "text_config": TEXT | {"rope_parameters": _MROPE},
}


def build(name: str, **config: Any) -> Any:
    """A model with attention far from uniform, and with norms and biases that do something."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    settings = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(settings)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
        elif parameter.dim() == 1:  # made as all ones or all zeros, which would hide a lost one
            parameter.data.add_(torch.randn(parameter.shape, generator=g), alpha=0.2)
    return model.eval()


def llava() -> Subject:
    model = build("Llava", vision_config=CLIP, text_config=LLAMA, image_token_index=IMAGE)
    return Subject(model, IMAGE, 36, (3, 24, 24))


def vipllava() -> Subject:
    model = build(
        "VipLlava",
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return Subject(model, IMAGE, 36, (3, 24, 24))


def tiny_llava() -> Subject:
    model, processor = load("tiny-llava", dtype="float32")
    token = model.config.image_token_id
    size = model.config.vision_config.image_size
    count = (size // model.config.vision_config.patch_size) ** 2
    words = [i for i in range(5, model.config.text_config.vocab_size) if i != token]
    assert words == list(range(words[0], words[-1] + 1))
    vocabulary = range(words[0], words[-1] + 1)
    return Subject(
        model, token, count, (3, size, size), vocabulary, processor.tokenizer.pad_token_id
    )


def _newlines(overview: int, rows: int, width: int) -> tuple[tuple[int, int, int], ...]:
    starts = [(row, overview + row * width) for row in range(rows)]
    return tuple((start + width + row, start, start + width) for row, start in starts)


def llava_next() -> Subject:
    """An overview of 4x4 and 24x16 pixels on two tiles: 8x4 patches of which 6x4 are picture."""
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    model = build(
        "LlavaNext",
        vision_config=CLIP | {"image_size": 16},
        text_config=LLAMA,
        image_token_index=IMAGE,
        image_grid_pinpoints=pinpoints,
    )
    extra = {"image_sizes": [24, 16]}
    return Subject(model, IMAGE, 40, (3, 3, 16, 16), separators=_newlines(16, 6, 4), extra=extra)


def _with_video(name: str, tower: dict[str, Any], text: dict[str, Any]) -> Any:
    return build(
        name,
        vision_config=tower,
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **({} if name == "VideoLlava" else {"image_grid_pinpoints": [[24, 48], [48, 24]]}),
    )


def llava_next_video(modality: str) -> Subject:
    model = _with_video("LlavaNextVideo", CLIP, LLAMA)
    if modality == "video":
        shape = (3, 3, 24, 24)
        clips = Subject(model, VIDEO, 27, shape, reserved=(IMAGE,), frames=3, modality="video")
        # transformers 5.19 takes the clip apart when it repeats the prompt.
        clips.repeats = Version(transformers.__version__) >= Version("5.20")
        return clips
    return _tiled_image(model)


def llava_onevision(modality: str) -> Subject:
    model = _with_video("LlavaOnevision", SIGLIP, QWEN2)
    if modality == "image":
        return _tiled_image(model)
    clips = Subject(model, VIDEO, 27, (3, 3, 24, 24), reserved=(IMAGE,), frames=3, modality="video")
    clips.separators = ((27, 0, 27),)
    return clips


def _tiled_image(model: Any) -> Subject:
    """12x24 pixels on tiles of 24x48: an overview of 6x6 and 6x12 patches."""
    extra, ends = {"image_sizes": [12, 24]}, _newlines(36, 6, 12)
    return Subject(
        model, IMAGE, 108, (3, 3, 24, 24), reserved=(VIDEO,), separators=ends, extra=extra
    )


def video_llava(modality: str) -> Subject:
    model = _with_video("VideoLlava", CLIP, LLAMA)
    if modality == "image":
        named = "pixel_values" in signature(model.model.forward).parameters
        pixels = "pixel_values" if named else "pixel_values_images"  # until transformers 5.22
        return Subject(model, IMAGE, 36, (3, 24, 24), reserved=(VIDEO,), pixels=pixels)
    cls = ((0, 0, 36), (37, 36, 72))
    return Subject(
        model,
        VIDEO,
        72,
        (2, 3, 24, 24),
        reserved=(IMAGE,),
        separators=cls,
        frames=2,
        modality="video",
    )


def qwen(name: str, tower: dict[str, Any], modality: str, kind: type[QwenSubject]) -> Subject:
    model = build(name, vision_config=_QWEN_TOWER | tower, **_QWEN)
    if modality == "image":
        return kind(model, IMAGE, 36, (144, 96), reserved=(VIDEO,))
    shape = (288, 96)
    return kind(model, VIDEO, 72, shape, reserved=(IMAGE,), frames=2, modality="video")


def tiny_qwen(modality: str) -> Subject:
    model, processor = load("tiny-qwen", dtype="float32")
    image, video = model.config.image_token_id, model.config.video_token_id
    words = [i for i in range(3, model.config.text_config.vocab_size) if i not in (image, video)]
    vocabulary = range(words[len(words) // 4], words[len(words) // 2])  # between special tokens
    pad = processor.tokenizer.pad_token_id
    if modality == "image":
        return QwenSubject(model, image, 36, (144, 384), vocabulary, pad, (video,))
    shape, other = (576, 384), (image,)
    return QwenSubject(model, video, 144, shape, vocabulary, pad, other, frames=4, modality="video")


_QWEN2_VL = ("Qwen2VL", {"embed_dim": 32, "mlp_ratio": 2})
_QWEN2_5_VL = (
    "Qwen2_5_VL",
    {
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
)
_QWEN3_VL = (
    "Qwen3VL",
    {
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_position_embeddings": 144,
        "deepstack_visual_indexes": [0, 1, 2],
    },
)


_QWEN3_VL_MOE = ("Qwen3VLMoe", _QWEN3_VL[1])


def internvl() -> Subject:
    """Three tiles of 3x3 tokens."""
    tower = TOWER | {"model_type": "internvl_vision", "image_size": [24, 24], "patch_size": [4, 4]}
    of_a_tile = {"image_token_id": IMAGE, "image_seq_length": 9}
    model = build("InternVL", vision_config=tower, text_config=QWEN2, **of_a_tile)
    return TileSubject(model, IMAGE, 27, (3, 3, 24, 24))


def idefics3(name: str) -> Subject:
    """Two tiles and an overview of 3x3 tokens."""
    model = build(name, vision_config=TOWER, text_config=LLAMA, image_token_id=IMAGE)
    return MarkedTileSubject(model, IMAGE, 27, (3, 3, 24, 24), lm_name="text_model")


def gemma3() -> Subject:
    """A window of 12 tokens, wider than an image but narrower than any prompt."""
    window, kinds = 12, ["sliding_attention", "sliding_attention", "full_attention"] * 2
    model = build(
        "Gemma3",
        vision_config=SIGLIP | {"vision_use_head": False},
        text_config=TEXT | {"layer_types": kinds, "sliding_window": window},
        image_token_id=IMAGE,
        mm_tokens_per_image=9,
    )
    return BidirectionalSubject(model, IMAGE, 9, (3, 24, 24), window=window)


def mistral3() -> Subject:
    """32x24 pixels: 8x6 patches, merged 2x2."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "patch_size": 4}
    tower |= {"model_type": "pixtral", "num_attention_heads": 4, "image_size": 48, "head_dim": 8}
    model = build(
        "Mistral3",
        vision_config=tower,
        text_config=TEXT | {"model_type": "mistral", "sliding_window": None},
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return Subject(model, IMAGE, 12, (3, 32, 24), extra={"image_sizes": [32, 24]})


LLAVA: dict[str, Callable[[], Subject]] = {"random llava": llava, "tiny-llava": tiny_llava}
SUBJECTS: dict[str, Callable[[], Subject]] = LLAVA | {
    "random llava-next": llava_next,
    "random llava-next-video": partial(llava_next_video, "image"),
    "random llava-next-video with clips": partial(llava_next_video, "video"),
    "random llava-onevision": partial(llava_onevision, "image"),
    "random llava-onevision with clips": partial(llava_onevision, "video"),
    "random video-llava": partial(video_llava, "image"),
    "random video-llava with clips": partial(video_llava, "video"),
    "random qwen2-vl": partial(qwen, *_QWEN2_VL, "image", QwenSubject),
    "random qwen2-vl with clips": partial(qwen, *_QWEN2_VL, "video", QwenSubject),
    "random qwen2.5-vl": partial(qwen, *_QWEN2_5_VL, "image", QwenSubject),
    "random qwen2.5-vl with clips": partial(qwen, *_QWEN2_5_VL, "video", QwenSubject),
    "tiny-qwen": partial(tiny_qwen, "image"),
    "tiny-qwen with clips": partial(tiny_qwen, "video"),
    "random qwen3-vl": partial(qwen, *_QWEN3_VL, "image", DeepStackSubject),
    "random qwen3-vl with clips": partial(qwen, *_QWEN3_VL, "video", DeepStackSubject),
    "random internvl": internvl,
    "random idefics3": partial(idefics3, "Idefics3"),
    "random smolvlm": partial(idefics3, "SmolVLM"),
    "random gemma3": gemma3,
    "random qwen3-vl-moe": partial(qwen, *_QWEN3_VL_MOE, "image", DeepStackSubject),
    "random qwen3-vl-moe with clips": partial(qwen, *_QWEN3_VL_MOE, "video", DeepStackSubject),
    "random vipllava": vipllava,
    "random mistral3": mistral3,
}
SEPARATED = [
    "random llava-next",
    "random llava-onevision",
    "random llava-onevision with clips",
    "random video-llava with clips",
]
