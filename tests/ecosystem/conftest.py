"""A trained and a small random model with one prompt each, and what they give when left alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from subject_models import CLIP, LLAMA, build

import vlmcompress
from vlmcompress.models.names import ASSETS

METHODS = {"divprune": "25%", "fastv": "55%", "divprune+fastv": "25%"}
"""Method -> budget: before the decoder, inside it, both."""


@dataclass
class Case:
    """A model that a test may spoil, and a prompt with a picture."""

    model: Any
    inputs: Any
    processor: Any = None
    chat: Any = None

    def ids(self, model: Any = None, **options: Any) -> Any:
        """Six new tokens, which are enough for a lossy method to differ."""
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
        return (model or self.model).generate(**self.inputs, **options)

    @torch.no_grad()
    def logits(self, model: Any = None) -> torch.Tensor:
        """Of the last token of the prompt."""
        return (model or self.model)(**self.inputs).logits[:, -1]

    def compress(self, method: str = "divprune+fastv", model: Any = None) -> Any:
        return vlmcompress.compress(model or self.model, method, budget=METHODS[method])

    def wanted(self, method: str = "divprune+fastv") -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the bare model, and of one that is compressed in the plainest way."""
        twin = copy.deepcopy(self.model)
        bare = self.ids(twin)
        with self.compress(method, twin):
            short = self.ids(twin)
        assert not torch.equal(bare, short)
        return bare, short


@pytest.fixture
def case(tiny_llava) -> Case:
    """The built-in model."""
    model, processor = tiny_llava
    image = Image.open(ASSETS / "samples" / "street.png").convert("RGB")
    content = [{"type": "image", "image": image}]
    content += [{"type": "text", "text": "what color is the circle ?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    return Case(copy.deepcopy(model), inputs, processor, chat)


@pytest.fixture
def small() -> Case:
    """Two decoder layers of random weights, for what is slow; `fastv(k=1)` fits."""
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "image_size": 16}
    model = build(
        "Llava", vision_config=CLIP | tower, text_config=LLAMA | sizes, image_token_index=39
    )
    ids = torch.tensor([[5, 6, *[39] * 16, 7, 8, 9, 10]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Case(model, inputs | {"pixel_values": torch.randn(1, 3, 16, 16)})
