"""Signals are collected where a method needs them and nowhere else, or are refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from looker import looker
from subject_models import CLIP, IMAGE, LLAMA, SIGLIP, build

from vlmcompress.api import compress, list_models
from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches import family_of


def tower_hooks(model: Any) -> list[str]:
    """Names of the modules in vision towers that have hooks of ours."""
    base = model.model
    found = []
    for name in family_of(model).encoder.towers:
        for path, module in base.get_submodule(name).named_modules():
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            found += [path for hook in hooks if "vlmcompress" in repr(hook)]
    return found


def attached(model: Any) -> dict[str, Any]:
    """Hooks and attributes of every module."""
    return {
        name: (dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize(
    ("needs", "layers"),
    [
        ((), ()),
        (("text",), ()),
        (("cls_attention",), (1,)),
        (("keys", "cls_attention"), (1,)),
        (("encoder_attention",), (1,)),
        (("encoder_attention",), (0,)),
        (("encoder_attention", "keys"), (0, 1)),
    ],
    ids=str,
)
def test_hooks_are_only_where_a_method_needs_them(random_subject, needs, layers):
    model = random_subject.model
    asked = (lambda depth, whole: (0,)) if 0 in layers else None
    method, shown = looker(*needs, layers=asked)
    batch = random_subject.batch(random_subject.prompt(1, 1))
    random_subject.generate(batch)
    before = tower_hooks(model)
    with compress(model, method, budget=4):
        paths = [path for path in tower_hooks(model) if path not in before]
        assert paths == [f"encoder.layers.{n}.self_attn" for n in layers]
        random_subject.generate(batch)
    assert tower_hooks(model) == before == []
    (tokens,) = shown
    names = ("encoder_attention", "cls_attention", "keys", "text", "relevance")
    assert {name for name in names if getattr(tokens, name) is not None} == set(needs)


@torch.no_grad()
def test_nothing_is_recorded_outside_a_feature_call(random_subject):
    method, _ = looker("keys")
    batch = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, method, budget=4) as c:
        thread = c._engine.signals._tap._thread
        for run in (
            lambda: random_subject.model.model.vision_tower(batch["pixel_values"]),
            lambda: random_subject.model(**batch),
        ):
            run()
            assert getattr(thread, "record", None) is None


def test_law_5_no_hook_is_left_behind_after_an_error(random_subject):
    method, _ = looker("keys", "encoder_attention")
    batch = random_subject.batch(random_subject.prompt(1, 1))
    random_subject.generate(batch)
    expected = random_subject.generate(batch)
    before = attached(random_subject.model)
    with compress(random_subject.model, method, budget=4):
        assert attached(random_subject.model) != before
        with pytest.raises(ValueError, match="Input image size"):
            random_subject.model(**{**batch, "pixel_values": torch.zeros(1, 3, 24, 20)})
    assert attached(random_subject.model) == before
    assert torch.equal(random_subject.generate(batch), expected)


def test_a_copy_of_the_model_collects_for_itself(random_subject, monkeypatch):
    batch = random_subject.batch(random_subject.prompt(1, 1))
    method, shown = looker("keys")
    with compress(random_subject.model, method, budget=4), torch.no_grad():
        twin = copy.deepcopy(random_subject.model)
        twin.model.vision_tower.encoder.layers[1].self_attn.k_proj.weight.mul_(2)
        random_subject.model(**batch)
        twin(**batch)
        random_subject.model(**batch)
    first, other, again = (tokens.keys for tokens in shown)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_family_tells_which_signals_it_gives():
    found = {model.name: set(model.signals) for model in list_models()}
    assert all("text" in signals for signals in found.values())
    assert found["llava"] >= {"cls_attention", "encoder_attention", "keys", "relevance"}
    assert found["qwen2_5_vl"] == {"encoder_attention", "keys", "text"}
    assert found["internvl"] == {"cls_attention", "encoder_attention", "keys", "text"}


def test_a_tower_without_cls_gives_none():
    model = build("Llava", vision_config=SIGLIP, text_config=LLAMA, image_token_index=IMAGE)
    with pytest.raises(UnsupportedModelError, match="needs cls_attention, which this llava model"):
        compress(model, looker("cls_attention")[0], budget=4)


def test_an_unknown_tower_gives_only_text():
    tower = {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 1}
    model = build("Llava", vision_config=tower, text_config=LLAMA, image_token_index=IMAGE)
    with pytest.raises(UnsupportedModelError, match=r"does not give \(it gives text\)"):
        compress(model, looker("keys")[0], budget=4)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_the_features_do_not_go_through_is_refused(random_subject, layer):
    method, _ = looker("encoder_attention", layers=lambda depth, whole: [layer])
    with pytest.raises(CompositionError, match=f"ViT layer {layer}; .* layers 0 to 1"):
        compress(random_subject.model, method, budget=4)
    assert tower_hooks(random_subject.model) == []


@pytest.mark.parametrize(
    ("chosen", "depth"), [(-2, 2), (-1, 3), (2, 2), ([-3, -2], 2), ([1, 3], 3)], ids=str
)
def test_the_feature_layer_is_the_last_that_the_features_go_through(chosen, depth):
    config = {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE}
    model = build("Llava", **config, vision_feature_layer=chosen)
    asked: list[int] = []
    method, _ = looker(
        "encoder_attention", layers=lambda depth, whole: asked.append(depth) or whole
    )
    with compress(model, method, budget=4):
        assert asked == [depth]


def test_features_from_before_the_first_layer_have_no_attention():
    config = {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE}
    model = build("Llava", **config, vision_feature_layer=0)
    with pytest.raises(UnsupportedModelError, match="come from after layer 0 of 3"):
        compress(model, looker("keys")[0], budget=4)


def test_whole_layers_of_qwen2_5_are_those_without_windows(qwen):
    asked: list[Any] = []
    method, _ = looker("encoder_attention", layers=lambda *given: asked.append(given) or [1])
    with compress(qwen.model, method, budget=4):
        assert asked == [(3, [1])]


def test_by_default_the_last_whole_layer_is_asked_for(qwen):
    method, shown = looker("encoder_attention")
    with compress(qwen.model, method, budget=4):
        qwen.generate(qwen.batch(qwen.prompt(1, 1)), max_new_tokens=1)
    assert list(shown[0].encoder_attention) == [1]


@torch.no_grad()
def test_features_encoded_beforehand_bring_no_signals(random_subject):
    batch = random_subject.batch(random_subject.prompt(1, 1))
    encoded = random_subject.encode(batch)
    given = {n: v for n, v in batch.items() if n != "pixel_values"}
    with (
        compress(random_subject.model, looker("keys")[0], budget=4),
        pytest.raises(UnsupportedCallError, match="encode the image after compress"),
    ):
        random_subject.model(**given, mm_encoder_outputs={"image": encoded})
    method, shown = looker("keys")
    with compress(random_subject.model, method, budget=4):
        encoded = random_subject.encode(batch)
        random_subject.model(**given, mm_encoder_outputs={"image": encoded})
    assert shown[0].keys.shape == (36, 32)
    with compress(random_subject.model, "divprune", budget=4) as c:
        random_subject.model(**given, mm_encoder_outputs={"image": encoded})
        assert c.report().images[0].after == 4


@pytest.mark.parametrize(
    "option", [{"vision_feature_layer": -1}, {"vision_feature_select_strategy": "full"}], ids=str
)
@torch.no_grad()
def test_features_of_another_layer_than_configured_are_refused(random_subject, option):
    batch = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, looker("keys")[0], budget=4):
        encode = random_subject.model.model.get_image_features
        encode(batch["pixel_values"], vision_feature_layer=-2)
        with pytest.raises(UnsupportedCallError, match="differs from the model's configuration"):
            encode(batch["pixel_values"], **option)
