"""Signals equal what the eager vision tower computes, token by token in raster order."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from bare_tower import Bare, look_at, mix, running_towers
from looker import every_layer, looker, per_image
from mechanisms import MECHANISMS
from subject_models import (
    CLIP,
    IMAGE,
    LLAMA,
    QWEN2,
    TOWER,
    build,
    idefics3,
    llava_onevision,
)
from subjects import Subject, TileSubject

from vlmcompress.api import compress
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.signals.tower_hooks import AT_FEATURE, PER_LAYER
from vlmcompress.tokens import VisualTokens

TOLERANCE = 1e-5


def tower_signals(subject: Any) -> list[str]:
    base = subject.model.model
    given = family_of(subject.model).encoder.gives(base)
    return sorted(given & (AT_FEATURE.keys() | PER_LAYER.keys()))


@pytest.fixture
def subject(subject: Any) -> Any:
    """Each family whose vision tower gives signals."""
    if not tower_signals(subject):
        pytest.skip("its vision tower gives no signals")
    return subject


CASES = {
    "one image": [(1, 5)],
    "two images": [(2, 6)],
    "padded batch of 1 and 2 images": [(1, 5), (2, 7)],
    "batch with a text-only row": [(1, 7), (0, 5)],
}


@pytest.fixture(params=list(CASES))
def batch(request: pytest.FixtureRequest, subject: Any) -> dict[str, torch.Tensor]:
    return make_batch(subject, request.param)


def make_batch(subject: Any, case: str) -> dict[str, torch.Tensor]:
    rows = enumerate(CASES[case], start=1)
    return subject.batch(*(subject.prompt(n, seed, text=text) for seed, (n, text) in rows))


def check(subject: Any, shown: list[VisualTokens], bare: Bare) -> None:
    """Compare all that the tower gives, image by image."""
    for field in tower_signals(subject):
        found = per_image(shown, field)
        assert len(found) == len(bare.mixture)
        for number, mine in enumerate(found):
            if field in PER_LAYER:
                assert list(mine) == list(range(bare.feature + 1))
            layers = mine if field in PER_LAYER else {bare.feature: mine}
            for layer, values in layers.items():
                expected = of_layer(bare, field, layer)[number]
                assert (values - expected).abs().max() < TOLERANCE
                assert expected.std() > 10 * TOLERANCE, "uniform attention would pass"
                assert values.dtype == torch.float32


def of_layer(bare: Bare, field: str, layer: int) -> torch.Tensor:
    """[images, N, ...] of a layer of the bare tower."""
    if field.endswith("keys"):
        return bare.mixture @ bare.keys[layer]
    return bare.cls(layer) if field.endswith("cls_attention") else bare.received(layer)


@pytest.mark.rotating(axis="batch", by="subject", count=1)
@torch.no_grad()
def test_a_forward_gives_what_eager_attention_gives(subject, batch, monkeypatch):
    method, shown = looker(*tower_signals(subject), layers=every_layer)
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch)
    check(subject, shown, look_at(subject, batch, monkeypatch))


@pytest.mark.rotating(axis="beams", by="subject", count=1, subject=MECHANISMS)
@pytest.mark.parametrize("beams", [1, 2], ids=["greedy", "beams"])
def test_generate_gives_the_same_once_for_each_image(subject, monkeypatch, beams):
    if beams > 1 and not subject.repeats:
        pytest.skip("this version of transformers cannot repeat these clips")
    batch = make_batch(subject, "padded batch of 1 and 2 images")
    method, shown = looker(*tower_signals(subject), layers=every_layer)
    with compress(subject.model, method, budget="50%"):
        subject.generate(batch, num_beams=beams, max_new_tokens=2)
    check(subject, shown, look_at(subject, batch, monkeypatch))


@torch.no_grad()
def test_the_model_keeps_its_attention_and_its_features(subject, monkeypatch):
    batch = make_batch(subject, "two images")
    bare = subject.features(batch)
    modules = {
        sys.modules[type(m).__module__] for t in running_towers(subject) for m in t.modules()
    }

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("eager attention ran")

    def plain(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        assert not kwargs.get("output_attentions")

    parts = [m for tower in running_towers(subject) for m in tower.modules()]
    before = [m.config._attn_implementation for m in parts if hasattr(m, "config")]
    assert set(before) == {"sdpa"}
    handles = [m.register_forward_pre_hook(plain, with_kwargs=True) for m in parts]
    method, shown = looker(*tower_signals(subject), layers=every_layer)
    with compress(subject.model, method, budget="50%"), monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "eager_attention_forward", never, raising=False)
        subject.model(**batch)
        assert before == [m.config._attn_implementation for m in parts if hasattr(m, "config")]
    for handle in handles:
        handle.remove()
    for tokens, expected in zip(per_image(shown, "features"), bare, strict=True):
        assert torch.equal(tokens, subject.visual(expected))


@torch.no_grad()
def test_nothing_that_the_tower_computed_is_computed_again(subject):
    batch = make_batch(subject, "two images")
    modules = [
        module
        for tower in running_towers(subject)
        for name, module in tower.named_modules()
        if name.endswith(("qkv", "_proj"))
    ]
    calls: list[int] = []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in modules]
    subject.model(**batch)
    bare = len(calls)
    calls.clear()
    method, _ = looker(*tower_signals(subject), layers=every_layer)
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch)
    for handle in handles:
        handle.remove()
    assert len(calls) == bare > 0


@torch.no_grad()
def test_every_call_of_a_tower_keeps_what_it_projected(random_subject):
    pixels = random_subject.batch(random_subject.prompt(1, 1))["pixel_values"]
    with compress(random_subject.model, looker("keys")[0], budget=4) as c:
        with c._engine.installed.signals.recording() as record:
            for image in (pixels, -pixels):
                random_subject.model.model.vision_tower(image)
        calls = record["in", 1]
    assert len(calls) == 2
    for call in calls:
        assert list(call.projected) == ["k_proj"]
        assert torch.equal(call.keys(), call.attention.k_proj(call.hidden))
    assert not torch.equal(calls[0].keys(), calls[1].keys())


@torch.no_grad()
def test_under_autocast_scores_are_float32(random_subject, monkeypatch):
    batch = random_subject.batch(random_subject.prompt(1, 1))
    method, shown = looker("cls_attention", "encoder_attention", layers=every_layer)
    with (
        compress(random_subject.model, method, budget=4),
        torch.autocast("cpu", torch.bfloat16),
    ):
        random_subject.model(**batch)
    bare = look_at(random_subject, batch, monkeypatch)
    assert shown[0].cls_attention.dtype == torch.float32
    assert (shown[0].cls_attention - bare.cls(bare.feature)[0]).abs().max() < 1e-2


@torch.no_grad()
def test_cls_is_a_token_where_the_model_keeps_it(monkeypatch):
    model = build(
        "Llava",
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )
    subject = Subject(model, IMAGE, 37, (3, 24, 24))
    batch = make_batch(subject, "one image")
    method, shown = looker(*tower_signals(subject), layers=every_layer)
    with compress(model, method, budget="50%"):
        model(**batch)
    check(subject, shown, look_at(subject, batch, monkeypatch))


@torch.no_grad()
def test_queries_and_keys_are_normed_where_the_tower_does_so(monkeypatch):
    subject = TileSubject(
        build(
            "InternVL",
            vision_config=TOWER
            | {"model_type": "internvl_vision", "image_size": [24, 24], "patch_size": [4, 4]}
            | {"use_qk_norm": True},
            text_config=QWEN2,
            image_token_id=IMAGE,
        ),
        IMAGE,
        27,
        (3, 3, 24, 24),
    )
    for name, weight in subject.model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            weight.copy_(torch.rand(len(weight)) * 3)
    batch = make_batch(subject, "one image")
    method, shown = looker(*tower_signals(subject), layers=every_layer)
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch)
    bare = look_at(subject, batch, monkeypatch)
    for layer, values in per_image(shown, "encoder_attention")[0].items():
        assert (values - bare.received(layer)[0]).abs().max() < TOLERANCE


@torch.no_grad()
def test_padding_inside_a_tile_is_not_attended_to(monkeypatch):
    subject = idefics3("Idefics3")
    batch = make_batch(subject, "one image")
    mask = torch.ones(*batch["pixel_values"].shape[:2], 24, 24, dtype=torch.long)
    mask[:, 1, 12:] = 0
    method, shown = looker("encoder_attention", layers=every_layer)
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch, pixel_attention_mask=mask)
    first, second, _ = (tokens.encoder_attention[2] for tokens in shown)
    # Tokens 6 to 8 are below the picture; the ones in its last row are half outside.
    assert second[6:].eq(0).all()
    assert (first[6:] > 0).all()
    assert 4 * second.sum().item() == pytest.approx(1)


@torch.no_grad()
def test_the_packing_of_signals_is_that_of_features():
    """Also where the model shrinks an image, or does not tile it: whatever projects before."""
    model = llava_onevision("image").model
    base, encoder = model.model, family_of(model).encoder
    projected: list[torch.Tensor] = []
    base.multi_modal_projector.register_forward_hook(lambda *a: projected.append(a[-1]))
    pixels = torch.randn(2, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[12, 24], [24, 12]])
    for options in ({}, {"vision_aspect_ratio": "anyres_max_1"}, {"batch_num_images": [2]}):
        call = {"pixel_values": pixels, "image_sizes": sizes, **options}
        features = base.get_image_features(**call).pooler_output
        found = encoder.to_tokens(base, "image", projected.pop(), call)
        for mine, expected in zip(found, features, strict=True):
            picture = ~mine.isnan().any(-1)
            assert mine.shape == expected.shape
            assert torch.equal(mine[picture], expected[picture])
            assert (expected[~picture] == base.image_newline).all()


def test_images_of_different_sizes_come_out_of_their_windows_in_raster_order(qwen):
    """5x7 and 3x5 tokens in windows of 2x2, which do not fill them."""
    base, encoder = qwen.model.model, family_of(qwen.model).encoder
    states: list[torch.Tensor] = []

    def leaf(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        states.append(output.detach().requires_grad_())
        return states[-1]

    handle = base.visual.blocks[-1].register_forward_hook(leaf)
    pixels = torch.randn(200, 96, generator=torch.Generator().manual_seed(0))
    call = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 10, 14], [1, 6, 10]])}
    features = base.get_image_features(**call).pooler_output
    handle.remove()
    mixture = torch.stack([mix(feature, states[0]) for image in features for feature in image])
    found = encoder.to_tokens(base, "image", states[0].detach(), call)
    assert [len(image) for image in found] == [35, 15]
    assert torch.allclose(torch.cat(found), mixture @ states[0].detach(), atol=TOLERANCE)
