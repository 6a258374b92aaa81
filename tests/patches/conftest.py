"""Subjects of the seven laws: random-config models, the trained tiny one, and their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from vlmcompress.loading import load


@dataclass
class Subject:
    """A model and a way to make prompts of random text and random images for it."""

    model: Any
    image_token: int
    tokens_per_image: int
    pixel_shape: tuple[int, ...]
    """Of one image."""
    vocabulary: range
    pad: int = 0
    reserved: tuple[int, ...] = ()
    """Further tokens that stand for pictures."""

    @property
    def layers(self) -> int:
        return len(self.model.model.language_model.layers)

    def prompt(self, images: int, seed: int, text: int = 6) -> tuple[list[int], torch.Tensor]:
        """Token ids with `images` images and their pixels."""
        g = torch.Generator().manual_seed(seed)

        def words(n: int) -> list[int]:
            picks = torch.randint(len(self.vocabulary), (n,), generator=g)
            return [self.vocabulary[int(i)] for i in picks]

        ids = words(3)
        for _ in range(images):
            ids += [self.image_token] * self.tokens_per_image + words(2)
        return ids + words(text), torch.randn(images, *self.pixel_shape, generator=g)

    def batch(self, *prompts: tuple[list[int], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs of a batch, padded on the left."""
        width = max(len(ids) for ids, _ in prompts)
        rows = [[self.pad] * (width - len(ids)) + ids for ids, _ in prompts]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in prompts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        return inputs | self.images(torch.cat([pixels for _, pixels in prompts]))

    def images(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model wants for images with these pixels, nothing for none."""
        return {"pixel_values": pixels} if len(pixels) else {}

    def features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[images, N, D] from the bare model."""
        given = {n: v for n, v in inputs.items() if n.startswith("pixel") or n.endswith("thw")}
        clips = "pixel_values_videos" in given
        base = self.model.model
        encode = base.get_video_features if clips else base.get_image_features
        return torch.stack(list(encode(**given).pooler_output))

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of the whole prompt."""
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """Six new tokens, never a placeholder (those would ask for image features)."""
        options = {"do_sample": False, "max_new_tokens": 6, **options}
        return self.model.generate(
            **inputs,
            suppress_tokens=sorted({self.image_token, *self.reserved}),
            eos_token_id=None,
            pad_token_id=self.pad,
            **options,
        )


class QwenSubject(Subject):
    """Images of 12x12 patches, merged 2x2; positions with three axes."""

    modality, kind, frames = "image", 1, 1

    def batch(self, *prompts: tuple[list[int], torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = super().batch(*prompts)
        return inputs | {"mm_token_type_ids": self._types(inputs)}

    def _types(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (inputs["input_ids"] == self.image_token).long() * self.kind

    def images(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(pixels) == 0:
            return {}
        grids = torch.tensor([[self.frames, 12, 12]]).repeat(len(pixels), 1)
        name = "pixel_values" if self.modality == "image" else "pixel_values_videos"
        return {name: pixels.flatten(0, 1), f"{self.modality}_grid_thw": grids}

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        name = f"{self.modality}_grid_thw"
        if name not in inputs:
            return super().positions(inputs)
        found: torch.Tensor = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=self._types(inputs).int(),
            attention_mask=inputs["attention_mask"],
            **{name: inputs[name]},
        )[0]
        return found


class ClipSubject(QwenSubject):
    """Clips of two steps in time instead of images."""

    modality, kind, frames = "video", 2, 2


_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN = {
    "image_token_id": 99,
    "video_token_id": 98,
    "vision_start_token_id": 97,
    "vision_end_token_id": 96,
    "text_config": _TEXT
    | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
}
_QWEN_TOWER = {"depth": 3, "patch_size": 4, "num_heads": 4, "hidden_size": 32}


def _with_large_weights(model: Any) -> Any:
    """Attention far from uniform, so that errors show."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    return model.eval()


def _random_qwen2() -> Subject:
    torch.manual_seed(0)
    config = Qwen2VLConfig(vision_config=_QWEN_TOWER | {"embed_dim": 32, "mlp_ratio": 2}, **_QWEN)
    model = _with_large_weights(Qwen2VLForConditionalGeneration(config))
    return QwenSubject(model, 99, 36, (144, 96), range(3, 96), reserved=(98,))


def _random_qwen2_5() -> Subject:
    torch.manual_seed(0)
    tower = {"out_hidden_size": 32, "intermediate_size": 48, "window_size": 16}
    tower |= {"fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(vision_config=_QWEN_TOWER | tower, **_QWEN)
    model = _with_large_weights(Qwen2_5_VLForConditionalGeneration(config))
    return QwenSubject(model, 99, 36, (144, 96), range(3, 96), reserved=(98,))


def _random_clips() -> Subject:
    return ClipSubject(_random_qwen2_5().model, 98, 72, (288, 96), range(3, 96), reserved=(99,))


def _random_llava() -> Subject:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=24,
            patch_size=4,
        ),
        text_config=LlamaConfig(**_TEXT),
        image_token_index=99,
    )
    model = _with_large_weights(LlavaForConditionalGeneration(config))
    return Subject(model, 99, 36, (3, 24, 24), range(3, 96))


def _tiny_llava() -> Subject:
    model, processor = load("tiny-llava", dtype="float32")
    vocabulary = range(5, model.config.text_config.vocab_size)
    token = model.config.image_token_id
    size = model.config.vision_config.image_size
    count = (size // model.config.vision_config.patch_size) ** 2
    words = [i for i in vocabulary if i != token]
    assert words == list(range(words[0], words[-1] + 1))
    pad = processor.tokenizer.pad_token_id
    vocabulary = range(words[0], words[-1] + 1)
    return Subject(model, token, count, (3, size, size), vocabulary, pad)


_LLAVA = {"random llava": _random_llava, "tiny-llava": _tiny_llava}
_SUBJECTS = _LLAVA | {
    "random qwen2-vl": _random_qwen2,
    "random qwen2.5-vl": _random_qwen2_5,
    "random qwen2.5-vl with clips": _random_clips,
}
_built: dict[str, Subject] = {}


@pytest.fixture(params=list(_SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each supported model in turn, float32, attention set back to SDPA."""
    return _get(request.param)


@pytest.fixture(params=list(_LLAVA))
def llava(request: pytest.FixtureRequest) -> Subject:
    """Those whose positions are one number per token."""
    return _get(request.param)


@pytest.fixture
def qwen() -> Subject:
    """Qwen2.5-VL with a random config."""
    return _get("random qwen2.5-vl")


def _get(name: str) -> Subject:
    if name not in _built:
        _built[name] = _SUBJECTS[name]()
    _built[name].model.set_attn_implementation("sdpa")
    return _built[name]


@pytest.fixture
def random_subject() -> Subject:
    """A private random-config LLaVA that a test may spoil."""
    return _random_llava()


_CASES = {
    "one image": [(1, 5)],
    "two images": [(2, 6)],
    "batch of 1 and 2 images": [(1, 5), (2, 7)],
    "batch with a text-only row": [(1, 7), (0, 5)],
    "rows of one length with 1 and 2 images": [(1, None), (2, 6)],
}


@pytest.fixture(params=list(_CASES))
def prompts(request: pytest.FixtureRequest, subject: Subject) -> list[Any]:
    """Prompts of one batch: images per prompt, and words of text, which differ to force padding."""
    # Text instead of an image: no padding at first, but ragged once images shrink.
    instead = subject.tokens_per_image + 2
    return [
        subject.prompt(images, seed, text=6 + instead if text is None else text)
        for seed, (images, text) in enumerate(_CASES[request.param], start=1)
    ]
