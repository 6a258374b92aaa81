"""Shapes of published models: as large as published, and ready to run anywhere."""

import pytest
import torch
import transformers

from vlmcompress import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.profiler.published_shapes import SHAPES, configuration
from vlmcompress.profiler.random_prompts import prompt
from vlmcompress.profiler.random_weights import build

# Visual tokens, placeholders and pixels of an image as processors make them.
IMAGES = {
    "llava-1.5-7b": (576, 576, (1, 3, 336, 336)),
    "llava-next-7b": (2880, 2880 + 48, (1, 5, 3, 336, 336)),
    "llava-onevision-0.5b": (1458, 1458 + 27, (1, 2, 3, 384, 384)),
    "qwen2.5-vl-7b": (30, 30, (120, 1176)),
    "qwen3-vl-4b": (30, 30, (120, 1536)),
    "internvl3-2b": (768, 768, (3, 3, 448, 448)),
    "qwen2-0.5b-llava": (576, 576, (1, 3, 336, 336)),
    "qwen2-0.5b-llava-next": (2880, 2880 + 48, (1, 5, 3, 336, 336)),
}


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.parameters])
def test_as_many_parameters_as_published(name):
    kind = getattr(transformers, f"{SHAPES[name].family}ForConditionalGeneration")
    with torch.device("meta"):
        model = kind(configuration(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(SHAPES[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", list(SHAPES))
def test_prompts_have_the_shapes_of_processors(name):
    config = configuration(name)
    tokens, placeholders, pixels = IMAGES[name]
    stand_in = type("M", (), {"config": config, "dtype": torch.bfloat16, "device": "cpu"})
    inputs = prompt(stand_in, name, visual_tokens=tokens, text=12, batch=2)
    assert inputs["input_ids"].shape == (2, placeholders + 12)
    visual = inputs["input_ids"] == config.image_token_id
    assert visual.sum(1).tolist() == [placeholders] * 2
    assert visual[0].nonzero()[0] == 5
    assert inputs["pixel_values"].shape == (2 * pixels[0], *pixels[1:])
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert SHAPES[name].tokens in (576, 2880, 3645, 1369, 1024, 1792)


@pytest.fixture(scope="module")
def small():
    """The smallest published decoder on two layers."""
    return build("llava-onevision-0.5b", device="cpu", layers=2, encoder_layers=1)


def test_weights_are_real_and_tied_and_buffers_are_those_of_the_model(small):
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for p in [*small.parameters(), *small.buffers()])
    # `from_pretrained` leaves them so, and PyTorch is faster then.
    assert all(p.requires_grad for p in small.parameters())
    assert small.lm_head.weight is small.get_input_embeddings().weight
    assert not small.training
    assert small.lm_head.weight.std().item() == pytest.approx(896**-0.5, rel=0.05)
    rotary = small.model.language_model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    torch.testing.assert_close(rotary, 1e6 ** (-torch.arange(0, 64, 2) / 64))
    positions = small.model.vision_tower.embeddings.position_ids
    assert positions.tolist() == [list(range(729))]


def test_a_cut_shape_runs_and_can_be_compressed(small):
    name = "llava-onevision-0.5b"
    inputs = prompt(small, name, visual_tokens=2187)  # 384x768: more columns than rows
    with torch.no_grad():
        logits = small(**inputs, logits_to_keep=1).logits
    assert logits.isfinite().all()
    assert logits.float().std() > 0.1
    with compress(small, "stride", 64) as handle:
        small.generate(**inputs, max_new_tokens=1)
    (image,) = handle.report().images
    assert (image.before, image.after) == (2187, 64)


@pytest.mark.parametrize(("layers", "encoder_layers"), [(2, None), (None, 3), (1, 9)])
def test_only_what_is_asked_for_is_cut(layers, encoder_layers):
    for name in ("qwen2.5-vl-7b", "qwen3-vl-4b"):
        whole, cut = configuration(name), configuration(name, layers, encoder_layers)
        asked = (
            layers or whole.text_config.num_hidden_layers,
            encoder_layers or whole.vision_config.depth,
        )
        assert (cut.text_config.num_hidden_layers, cut.vision_config.depth) == asked
        special = "fullatt_block_indexes" if "2.5" in name else "deepstack_visual_indexes"
        left = [n for n in getattr(whole.vision_config, special) if n < asked[1]]
        assert getattr(cut.vision_config, special) == (left or [asked[1] - 1])
    assert configuration("llava-1.5-7b").text_config.num_hidden_layers == 32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: build("llava-1.5"), "unknown shape 'llava-1.5'.*llava-1.5-7b"),
        (lambda m: build("llava-1.5-7b", layers=33), "has 32 layers: give 1 to 32, not 33"),
        (lambda m: build("llava-1.5-7b", encoder_layers=0), "vision tower .* 24 layers"),
        (lambda m: build("llava-1.5-7b", device="tpu9"), "device 'tpu9' is not there"),
        (lambda m: build("llava-1.5-7b", attention="fast", layers=1), "fast attention"),
        (lambda m: prompt(m, "llava-onevision-0.5b", visual_tokens=576), "give 1458, "),
        (lambda m: prompt(m, "llava-onevision-0.5b", text=5), "6 words or more, got 5"),
    ],
)
def test_wrong_input(small, call, message):
    with pytest.raises(VLMCompressError, match=message) as caught:
        call(small)
    assert "\n" not in str(caught.value)
