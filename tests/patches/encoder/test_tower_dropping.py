"""Tokens dropped between the layers of a vision tower, against a masked tower."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from bare import bare, last_logits
from bare_tower import feature_depth, running_towers
from built_subjects import BLOCKS, PACKED, subject_of
from cut_pixels import all_but, check_kept, encode, every_feature, masked, pictures
from subject_models import IMAGE, LLAMA, TOWER, build
from upstream_methods import Given, picks

from vlmcompress.api import compress
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import Selector
from vlmcompress.methods.contracts.before_projector import TokenPatches
from vlmcompress.patches.families.tower_layers import attention_layers

TILES = BLOCKS | {
    "tiny-llava": (1, 1),
    "random llava": (1, 1),
    "random llava-next": (1, 1),
    "random llava-onevision": (1, 0),
    "random video-llava with clips": (1, 1),
    "random vipllava": (1, 1),
}
"""Patches along a side of a token, and tokens of a tile that are no patches."""


def depth_of(subject: Any) -> int:
    (tower,) = running_towers(subject)
    return feature_depth(subject, len(attention_layers(tower)))


DEFAULT = ["random qwen2.5-vl", "random qwen3-vl with clips", "random internvl", "random smolvlm"]


def once(name: str, *rest: Any) -> Any:
    """A few families in the default tier."""
    return pytest.param(name, *rest, marks=() if name in DEFAULT else pytest.mark.slow)


PACKED_ONCE = [once(name) for name in PACKED]
TILES_ONCE = [once(name, *facts) for name, facts in TILES.items()]


@pytest.mark.pairs
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED_ONCE)
def test_dropped_patches_are_no_keys_and_no_queries(name, attention, share, monkeypatch):
    """Every layer of every tower: the pictures have windows that lose all of their tokens."""
    subject = subject_of(name)
    sizes = [(6, 6), (5, 8)]
    _, inputs = pictures(subject, sizes)
    totals = [subject.frames * h * w for h, w in sizes]
    nothing = torch.zeros(sum(totals), dtype=torch.bool)
    untouched = every_feature(encode(subject, inputs))
    twin = every_feature(masked(subject, inputs, nothing, monkeypatch))
    assert max((a - b).abs().max() for a, b in zip(twin[0], untouched[0], strict=True)) < 1e-4
    counts = [round(share * total) for total in totals]
    for layer in range(depth_of(subject)):
        kept = [picks(layer, 1, *one)[0] for one in zip(totals, counts, strict=True)]
        dropped = all_but(kept, totals)
        expected = every_feature(masked(subject, inputs, dropped, monkeypatch, layer))
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, Given(layer=layer, seed=layer), budget=f"{share:.0%}"):
            found = every_feature(encode(subject, inputs))
        subject.model.set_attn_implementation("sdpa")

        def zeros(stack: int, layer: int = layer) -> bool:
            early = stack and subject.model.config.vision_config.deepstack_visual_indexes
            return not (early and early[stack - 1] < layer)  # taps before it see everything

        check_kept(found, expected, kept, zeros)
        moved = (found[0][0][kept[0]] - untouched[0][0][kept[0]]).abs().max()
        assert moved > 1e-3


def masked_tiles(
    subject: Any, inputs: Any, closed: torch.Tensor, first: int, monkeypatch: Any
) -> Any:
    """Features [images, placeholders, D] of the bare tower, keys of patches `closed` [B, T] from
    layer `first` on."""
    (tower,) = running_towers(subject)
    attentions = [attention for _, attention in attention_layers(tower)]
    module = sys.modules[type(attentions[0]).__module__]
    original = module.eager_attention_forward

    def spy(
        owner: Any, q: Any, k: Any, v: Any, attention_mask: Any, *rest: Any, **kwargs: Any
    ) -> Any:
        if attentions.index(owner) >= first:
            own = torch.zeros(closed.shape).masked_fill(closed, torch.finfo(torch.float32).min)
            own = own[:, None, None]
            attention_mask = own if attention_mask is None else attention_mask + own
        return original(owner, q, k, v, attention_mask, *rest, **kwargs)

    subject.model.set_attn_implementation("eager")
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, "eager_attention_forward", spy)
        features = subject.features(inputs)
    subject.model.set_attn_implementation("sdpa")
    return features


def closed_of(kept: torch.Tensor, side: int, block: int, cls: int) -> torch.Tensor:
    """[B, T] bool: patches of the tokens [B, K] of each tile that do not stay."""
    across = side // block
    stays = [
        [(y // block) * across + x // block in tile for y in range(side) for x in range(side)]
        for tile in map(set, kept.tolist())
    ]
    closed = ~torch.tensor(stays)
    return torch.cat([closed.new_zeros(len(closed), cls), closed], 1)


@pytest.mark.pairs
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", ["70%", "40%"])
@pytest.mark.parametrize(("name", "block", "cls"), TILES_ONCE)
def test_dropped_patches_of_tiles_are_no_keys_and_no_queries(
    name, block, cls, share, attention, monkeypatch
):
    subject = subject_of(name)
    one = "video" in name  # the prompts of this subject hold clips of equal length
    inputs = subject.batch(subject.prompt(1 if one else 2, 1))
    vision = subject.model.config.vision_config
    size, patch = (
        n[0] if isinstance(n, list | tuple) else n for n in (vision.image_size, vision.patch_size)
    )
    side = size // patch
    total = (side // block) ** 2
    with torch.no_grad():
        untouched = subject.features(inputs)
    tiles = len(next(v for n, v in inputs.items() if n.startswith("pixel")).flatten(0, -4))
    count = max(1, round(float(share[:-1]) / 100 * total))
    nothing = torch.zeros(tiles, cls + side * side, dtype=torch.bool)
    assert (masked_tiles(subject, inputs, nothing, 0, monkeypatch) - untouched).abs().max() < 1e-4
    for layer in range(depth_of(subject)):
        kept = picks(layer, tiles, total, count)
        closed = closed_of(kept, side, block, cls)
        expected = masked_tiles(subject, inputs, closed, layer, monkeypatch)
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, Given(layer=layer, seed=layer), budget=share) as c:
            last_logits(subject, inputs)
            images = c.report().images
            with torch.no_grad():
                found = subject.features(inputs)
        subject.model.set_attn_implementation("sdpa")
        for image, mine, other, before in zip(images, found, expected, untouched, strict=True):
            places = subject.visual(torch.arange(subject.placeholders))[image.kept]
            assert 0 < len(places) < image.before
            assert (mine[places] - other[places]).abs().max() < 1e-4
            assert (mine[places] - before[places]).abs().max() > 1e-3


def prompts(subject: Any) -> list[Any]:
    return [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]


@pytest.mark.pairs
@pytest.mark.parametrize("score", ["auto", "farthest"])
@pytest.mark.parametrize("name", [*PACKED_ONCE, *map(once, TILES)])
def test_keeping_all_changes_not_one_bit_and_removing_leaves_nothing(name, score):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    untouched, logits = snapshot(subject.model), bare(subject, inputs).logits
    for layer in range(depth_of(subject)):
        spec = f"unit-drop(layer={layer}, score={score!r})"
        with compress(subject.model, spec, budget="100%") as c:
            assert torch.equal(last_logits(subject, inputs), logits)
        assert not c.report().engaged
        with compress(subject.model, spec, budget="40%") as c:
            short = last_logits(subject, inputs)
        assert c.report().engaged
        assert ((short - logits).abs().amax(1) > 1e-3).all()
        assert snapshot(subject.model) == untouched
        assert torch.equal(last_logits(subject, inputs), logits)


@pytest.mark.parametrize("name", ["random internvl", "random smolvlm"])
def test_a_count_of_tokens_is_of_an_image_with_all_of_its_tiles(name):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    for spec, budget, given, after in (
        ("unit-drop", 12, 12, 12),
        ("unit-drop", 14, 12, 12),  # equally many of each of 3 tiles
        ("unit-drop+divprune", 12, 18, 12),
    ):
        with compress(subject.model, spec, budget=budget) as c:
            last_logits(subject, inputs)
            cached = subject.generate(inputs)
            assert torch.equal(cached, subject.generate(inputs, use_cache=False))
        found = {(image.given, image.after) for image in c.report().images}
        assert found == {(given, after)}


def test_images_of_several_sizes_share_a_percentage_but_no_count():
    """Three tiles, and one of its own."""
    subject = subject_of("random internvl")
    word, image = [5, 6], [subject.image_token]
    ids = torch.tensor([word + image * 27 + word + image * 9 + word])
    pixels = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def counts(spec: str, budget: Any) -> list[tuple[int, int]]:
        with compress(subject.model, spec, budget=budget) as c, torch.no_grad():
            subject.model(**inputs)
        return [(image.given, image.after) for image in c.report().images]

    assert counts("unit-drop", "45%") == [(12, 12), (4, 4)]
    assert counts("unit-drop+divprune", 6) == [(21, 6), (7, 6)]
    with pytest.raises(BudgetError, match="budget 6 is another share of images of 9 and of 27"):
        counts("unit-drop", 6)
    assert counts("unit-drop+divprune", "0.9 flops")[0][1] > 6


def test_what_a_tower_cannot_do_is_one_clear_error():
    llava, onevision = subject_of("random llava"), subject_of("random llava-onevision with clips")
    with pytest.raises(VLMCompressError, match="here a token is one patch: give score="):
        compress(llava.model, 'unit-drop(score="spread")', budget="50%")
    with pytest.raises(VLMCompressError, match="layer 2 is not in a vision tower of 2 layers"):
        compress(llava.model, "unit-drop(layer=2)", budget="50%")
    inputs = onevision.batch(onevision.prompt(1, 1))
    with (
        compress(onevision.model, "unit-drop", budget="50%"),
        pytest.raises(UnsupportedCallError, match="pools the patches of clips"),
    ):
        last_logits(onevision, inputs)
    mistral = subject_of("random mistral3")
    with pytest.raises(CompositionError, match="unit-drop acts at the encoder stage, which"):
        compress(mistral.model, "unit-drop", budget="50%")
    pixtral = build(
        "Llava",
        vision_config=TOWER | {"model_type": "pixtral"},
        text_config=LLAMA,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with pytest.raises(UnsupportedModelError, match="of this llava model takes pictures of any"):
        compress(pixtral, "unit-drop", budget="50%")
    next_ = subject_of("random llava-next")
    with (
        compress(next_.model, "unit-drop", budget=12),
        pytest.raises(BudgetError, match='give a share such as "25%"'),
    ):
        last_logits(next_, next_.batch(next_.prompt(1, 1)))


@dataclass(frozen=True)
class Wrong(Given):
    """Answers what a test wants."""

    name: ClassVar[str] = "wrong"
    answer: Any = None

    def select(self, tokens: TokenPatches, count: int) -> torch.Tensor:
        return self.answer if self.answer is not None else torch.zeros(1, count)


@pytest.mark.parametrize("name", ["random qwen2-vl", "random internvl"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "wrong gave"),
        (torch.zeros(1, 1, dtype=torch.int64), "where indices of shape"),
        ([1], "list where indices of shape"),
    ],
)
def test_a_wrong_choice_is_one_clear_error_and_the_model_is_as_before(name, answer, words):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1))
    logits = bare(subject, inputs).logits
    with (
        compress(subject.model, Wrong(answer=answer), budget="40%"),
        pytest.raises(VLMCompressError, match=words),
    ):
        last_logits(subject, inputs)
    assert torch.equal(last_logits(subject, inputs), logits)


def test_a_frame_may_lose_all_of_its_tokens():
    subject = subject_of("random qwen2.5-vl with clips")
    inputs = subject.batch(subject.prompt(1, 1))

    @dataclass(frozen=True)
    class First(Given):
        def select(self, tokens: TokenPatches, count: int) -> torch.Tensor:
            return torch.arange(count)[None]

    with compress(subject.model, First(layer=1), budget=20) as c:
        last_logits(subject, inputs)
    assert c.report().images[0].per_frame["after"] == [20, 0]


@pytest.mark.parametrize("name", ["random qwen3-vl", "tiny-qwen", "random internvl", "tiny-llava"])
def test_a_whole_tower_makes_the_same_choice_and_changes_no_feature(name):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1))
    untouched = subject.encode(inputs)
    kept = []
    for spec in ("unit-drop(layer=1)", "unit-drop(layer=1, whole_tower=True)"):
        with compress(subject.model, spec, budget="40%") as c, torch.no_grad():
            last_logits(subject, inputs)
            kept.append(c.report().images[0].kept)
            found = subject.encode(inputs)
    assert kept[0] == kept[1]
    for mine, other in zip(found.pooler_output, untouched.pooler_output, strict=True):
        assert torch.equal(mine, other)


@dataclass(frozen=True)
class Early(Selector):
    """Notes what the first layer attends to."""

    name: ClassVar[str] = "early"
    summary: ClassVar[str] = "selects"
    wants: tuple[str, ...] = ("encoder_attention", "layer_keys")
    layer: int = 0
    shown: Any = None

    @property
    def asks(self) -> frozenset[str]:
        return frozenset(self.wants)

    def encoder_layers(self, depth: int, whole: Any) -> set[int]:
        return {self.layer}

    def select(self, tokens: Any, count: int) -> torch.Tensor:
        self.shown.append(tokens)
        return torch.arange(count)


@pytest.mark.parametrize("name", ["random qwen2.5-vl", "random internvl"])
def test_signals_of_layers_before_are_those_of_the_whole_image(name):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1))
    seen: list[Any] = []
    with compress(subject.model, Early(shown=seen), budget="40%"):
        last_logits(subject, inputs)
    dropping = [Given(layer=1), Early(shown=seen)]
    with compress(subject.model, dropping, budget="20%") as c:
        last_logits(subject, inputs)
    assert c.report().dropped_before == (1, depth_of(subject))
    assert f"dropped before layer 1 of {depth_of(subject)} of the vision tower" in str(c.report())
    survivors = c._engine.trace.images[0].survivors.alive
    whole, some = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for field in Early.wants:
        both = [torch.cat([getattr(t, field)[0] for t in shown]) for shown in (whole, some)]
        assert 1 < len(both[1]) == len(survivors) < len(both[0])
        assert torch.equal(both[1], both[0][survivors])
    with pytest.raises(CompositionError, match="early looks at layer 1 of the vision tower, which"):
        compress(subject.model, [Given(layer=1), Early(layer=1, shown=seen)], budget="20%")
    with pytest.raises(CompositionError, match=r"looks at layer [12] of"):
        compress(subject.model, "unit-drop(layer=1)+visionzip", budget="20%")
    with compress(
        subject.model, "unit-drop(layer=1, whole_tower=True)+vispruner", budget="20%"
    ) as c:
        last_logits(subject, inputs)
    assert c.report().engaged
