"""Prompts of a batch are those of its members, with padding on the left."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processor_folders import KINDS, write_folder

from vlmcompress import prompts
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.media.video import Video
from vlmcompress.models.loading import load
from vlmcompress.models.processors import load_processor
from vlmcompress.prompts import prepare

without_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None,
    reason="with torchvision the classes of transformers are used",
)


@pytest.fixture(scope="session")
def load_kind(tmp_path_factory):
    """The processor of a family by name."""
    root = tmp_path_factory.mktemp("prompts")
    return lambda name: load_processor(str(write_folder(root / name, KINDS[name])))


@pytest.fixture
def some_model(monkeypatch):
    """As much of a model as a prompt needs."""
    family = SimpleNamespace(name="some", video=True, placeholders=lambda model: {})
    monkeypatch.setattr(prompts, "family_of", lambda model: family)
    config = SimpleNamespace(get_text_config=SimpleNamespace)
    return SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16, config=config)


def picture(seed, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def clip(seed, frames=4):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), np.uint8)
    times = [index / 2 for index in range(frames)]
    return Video(pixels, list(range(frames)), times, frames, 2.0, True, "drawn")


def same_rows(model, processor, given):
    """Compare a batch with its members; gives both."""
    batch = prepare(model, processor, given)
    alone = [prepare(model, processor, [one]) for one in given]
    for row, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        padding = batch["input_ids"].shape[1] - length
        assert torch.equal(batch["input_ids"][row, padding:], one["input_ids"][0])
        mask = batch["attention_mask"][row].tolist()
        assert mask == [0] * padding + [1] * length
    assert len({one["input_ids"].shape[1] for one in alone}) > 1  # something was padded
    return batch, alone


@without_torchvision
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_images(load_kind, some_model, name):
    given = [([picture(0)], "what ?"), ([picture(1), picture(2)], "and how do these two differ ?")]
    batch, alone = same_rows(some_model, load_kind(name), given)
    pixels = [value for key, value in batch.items() if key.startswith("pixel_values")]
    assert all(value.dtype == torch.bfloat16 for value in pixels)
    singles = [value for one in alone for key, value in one.items() if key == "pixel_values"]
    assert pixels[0].numel() >= sum(value.numel() for value in singles)


@without_torchvision
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in KINDS if name != "glm4v"])
def test_clips(load_kind, some_model, name):
    given = [([clip(0)], "what ?"), ([clip(1)], "and which way does it move ?")]
    same_rows(some_model, load_kind(name), given)


@pytest.mark.parametrize("built_in", ["tiny_llava", "tiny_qwen"])
def test_built_in_models_answer_a_batch_as_its_members(request, built_in):
    model, processor = request.getfixturevalue(built_in)
    given = [([picture(3, (96, 96))], "what color is the circle ?"), ([], "is there a red star ?")]
    given.append(([picture(4, (96, 96)), picture(5, (96, 96))], "count the stars ."))
    batch, alone = same_rows(model, processor, given)
    pixels = torch.cat([one["pixel_values"] for one in alone if "pixel_values" in one])
    assert torch.equal(batch["pixel_values"], pixels)
    with torch.inference_mode():
        together = model(**batch).logits[:, -1]
        singles = [model(**one).logits[0, -1] for one in alone]
    torch.testing.assert_close(together, torch.stack(singles), atol=1e-4, rtol=1e-4)


def test_a_conversation_says_where_its_pictures_stand(tiny_llava):
    model, processor = tiny_llava
    media = [picture(6, (96, 96))]
    words = {"type": "text", "text": "what ?"}
    before = [{"role": "user", "content": [{"type": "image"}, words]}]
    behind = [{"role": "user", "content": [words, {"type": "image"}]}]
    plain = prepare(model, processor, [(media, "what ?")])["input_ids"]
    assert torch.equal(prepare(model, processor, [(media, before)])["input_ids"], plain)
    assert not torch.equal(prepare(model, processor, [(media, behind)])["input_ids"], plain)


def test_a_model_without_clips(tiny_llava):
    with pytest.raises(UnsupportedModelError, match="llava models take images but no videos"):
        prepare(*tiny_llava, [([clip(0)], "what ?")])


def test_a_model_of_vectors_is_not_asked():
    model, processor = load("tiny-colqwen")
    with pytest.raises(UnsupportedModelError, match=r"answers no questions: vlmcompress\.embed"):
        prepare(model, processor, [([], "what ?")])
