"""Subjects of the seven laws: a random-config LLaVA, the trained tiny one, and their prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vlmcompress.loading import load

# Models this small spend their time waiting for a second thread.
torch.set_num_threads(1)


@dataclass
class Subject:
    """A model and a way to make prompts of random text and random images for it."""

    model: Any
    image_token: int
    tokens_per_image: int
    image_size: int
    vocabulary: range
    pad: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return len(self.model.model.language_model.layers)

    def prompt(self, images: int, seed: int, text: int = 6) -> tuple[list[int], torch.Tensor]:
        """Token ids with `images` images and their pixels [images, 3, S, S]."""
        g = torch.Generator().manual_seed(seed)

        def words(n: int) -> list[int]:
            picks = torch.randint(len(self.vocabulary), (n,), generator=g)
            return [self.vocabulary[int(i)] for i in picks]

        ids = words(3)
        for _ in range(images):
            ids += [self.image_token] * self.tokens_per_image + words(2)
        return ids + words(text), torch.randn(
            images, 3, self.image_size, self.image_size, generator=g
        )

    def batch(self, *prompts: tuple[list[int], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs of a batch, padded on the left."""
        width = max(len(ids) for ids, _ in prompts)
        rows = [[self.pad] * (width - len(ids)) + ids for ids, _ in prompts]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in prompts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        pixels = torch.cat([pixels for _, pixels in prompts])
        if len(pixels):
            inputs["pixel_values"] = pixels
        return inputs

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """Six new tokens, never a placeholder (those would ask for image features)."""
        options = {"do_sample": False, "max_new_tokens": 6, **options}
        return self.model.generate(
            **inputs,
            suppress_tokens=[self.image_token],
            eos_token_id=None,
            pad_token_id=self.pad,
            **options,
        )


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
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=100,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=99,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large weights: attention far from uniform, so that errors show
            parameter.data.normal_(0, 0.3)
    return Subject(model, 99, 36, 24, range(3, 99))


def _tiny_llava() -> Subject:
    model, processor = load("tiny-llava", dtype="float32")
    vocabulary = range(5, model.config.text_config.vocab_size)
    token = model.config.image_token_id
    size = model.config.vision_config.image_size
    count = (size // model.config.vision_config.patch_size) ** 2
    words = [i for i in vocabulary if i != token]
    assert words == list(range(words[0], words[-1] + 1))
    pad = processor.tokenizer.pad_token_id
    return Subject(model, token, count, size, range(words[0], words[-1] + 1), pad)


_SUBJECTS = {"random llava": _random_llava, "tiny-llava": _tiny_llava}
_built: dict[str, Subject] = {}


@pytest.fixture(params=list(_SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each supported model in turn, float32, attention set back to SDPA."""
    name = request.param
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
