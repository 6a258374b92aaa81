"""Signals are collected where a method needs them and nowhere else, or are refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from looker import looker
from subject_models import CLIP, IMAGE, LLAMA, SIGLIP, build
from subjects import Subject

from vlmcompress.api import compress, list_models
from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.families.registry import family_of
from vlmcompress.tokens import VisualTokens

SIGNALS = frozenset().union(*(model.signals for model in list_models()))


def tower_hooks(model: Any) -> list[str]:
    """Names of the modules in vision towers that have hooks of ours."""
    base = model.model
    found = []
    for name in family_of(model).encoder.towers:
        for path, module in base.get_submodule(name).named_modules():
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            found += [path for hook in hooks if "vlmcompress" in repr(hook)]
    return found


def given(tokens: VisualTokens) -> set[str]:
    """The signals that were collected."""
    return {name for name in SIGNALS if getattr(tokens, name) is not None}


def attached(model: Any) -> dict[str, Any]:
    """Hooks and attributes of every module."""
    return {
        name: (dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize(
    ("needs", "layers"),
    [
        ((), {}),
        (("text",), {}),
        (("cls_attention",), {1: "kq"}),
        (("keys", "cls_attention"), {1: "kq"}),
        (("encoder_attention",), {1: "kq"}),
        (("encoder_attention",), {0: "kq"}),
        (("encoder_attention", "keys"), {0: "kq", 1: "k"}),
        (("layer_keys",), {0: "k"}),
        (("layer_cls_attention", "layer_keys"), {1: "kq"}),
        (("vocabulary",), {}),
        (("projection",), {}),
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
        assert paths == [
            f"encoder.layers.{n}.self_attn{part}"
            for n, projections in layers.items()
            for part in ("", *(f".{name}_proj" for name in projections))
        ]
        random_subject.generate(batch)
    assert tower_hooks(model) == before == []
    (tokens,) = shown
    assert given(tokens) == set(needs)


@torch.no_grad()
def test_nothing_is_recorded_outside_a_feature_call(random_subject):
    method, _ = looker("keys")
    batch = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, method, budget=4) as c:
        recording = c._engine.installed.signals._recording
        for run in (
            lambda: random_subject.model.model.vision_tower(batch["pixel_values"]),
            lambda: random_subject.model(**batch),
        ):
            run()
            assert recording.value is None


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
    tower = {"encoder_attention", "keys", "layer_keys"}
    cls = {"cls_attention", "layer_cls_attention"}
    assert found["mistral3"] == {"text", "vocabulary", "question_logits"}
    assert found["gemma4"] & {"text", "question_logits"} == {"text"}, "its layers are watched"
    assert found["gemma3"] == found["mistral3"] | tower
    assert found["qwen2_5_vl"] == found["gemma3"] | {"projection"}
    assert found["internvl"] == found["qwen2_5_vl"] | cls
    assert found["llava"] == found["internvl"] | {"relevance"}


@pytest.mark.parametrize("need", ["cls_attention", "layer_cls_attention"])
def test_a_tower_without_cls_gives_none(need):
    model = build("Llava", vision_config=SIGLIP, text_config=LLAMA, image_token_index=IMAGE)
    with pytest.raises(UnsupportedModelError, match=f"needs {need}, which this llava model"):
        compress(model, looker(need)[0], budget=4)


def test_an_unknown_tower_gives_only_what_the_decoder_has():
    tower = {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 1}
    model = build("Llava", vision_config=tower, text_config=LLAMA, image_token_index=IMAGE)
    with pytest.raises(
        UnsupportedModelError, match=r"does not give \(it gives question_logits, text, vocab"
    ):
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


@pytest.mark.parametrize(
    ("vision", "needs", "collected"),
    [
        ("clip", ["cls_attention|encoder_attention"], {"cls_attention"}),
        ("siglip", ["cls_attention|encoder_attention"], {"encoder_attention"}),
        ("siglip", ["cls_attention|"], set()),
        ("clip", ["cls_attention|", "layer_cls_attention|layer_keys"], None),
        ("siglip", ["layer_cls_attention|layer_keys", "keys"], {"layer_keys", "keys"}),
        ("clip", ["relevance|text"], {"text"}),
        ("siglip", ["relevance|text"], {"text"}),
        ("clip", ["relevance|"], set()),
        ("clip", ["text|relevance"], {"text"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
@torch.no_grad()
def test_the_first_of_several_that_the_model_gives_is_collected(vision, needs, collected):
    tower = {"clip": CLIP, "siglip": SIGLIP}[vision]
    strategy = {"clip": "default", "siglip": "full"}[vision]
    model = build(
        "Llava",
        vision_config=tower,
        text_config=LLAMA,
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
    )
    subject = Subject(model, IMAGE, 36, (3, 24, 24))
    method, shown = looker(*needs)
    if collected is None:
        collected = {need.partition("|")[0] for need in needs}
    with compress(model, method, budget=4) as c:
        model(**subject.batch(subject.prompt(1, 1)))
        assert c._engine.installed.signals.collected == collected
    assert given(shown[0]) == collected


def test_only_layers_of_the_signal_that_is_collected_are_asked_for(random_subject):
    asked: list[int] = []
    method, _ = looker(
        "cls_attention|encoder_attention", layers=lambda depth, whole: asked.append(depth) or whole
    )
    with compress(random_subject.model, method, budget=4):
        assert asked == []


def test_alternatives_of_which_the_model_gives_none_are_all_named():
    model = build("Llava", vision_config=SIGLIP, text_config=LLAMA, image_token_index=IMAGE)
    method, _ = looker("cls_attention|relevance")
    with pytest.raises(UnsupportedModelError, match="look needs cls_attention or relevance, which"):
        compress(model, method, budget=4)


def test_a_missing_text_tower_counts_among_the_alternatives(random_subject):
    method, _ = looker("relevance|sizes")
    with pytest.raises(UnsupportedModelError, match="look needs relevance or sizes, which"):
        compress(random_subject.model, method, budget=4)


@torch.no_grad()
def test_the_vocabulary_is_that_of_the_decoder(subject):
    method, shown = looker("vocabulary")
    with compress(subject.model, method, budget="50%"):
        subject.model(**subject.batch(subject.prompt(1, 1)))
    assert shown[0].vocabulary is subject.model.get_input_embeddings().weight


def test_weights_that_are_not_loaded_are_no_vocabulary():
    model = build("Llava", vision_config=CLIP, text_config=LLAMA, image_token_index=IMAGE)
    model.get_input_embeddings().to("meta")
    with pytest.raises(UnsupportedModelError, match="needs vocabulary, which this"):
        compress(model, looker("vocabulary")[0], budget=4)
