"""Methods before the projector: the same laws, and merging against a loop written by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from bare import last_logits
from bare_tower import running_towers
from built_subjects import subject_of
from merged_tower import Plain, shrinking
from oracle import TOLERANCE, oracle, second_turn
from subject_models import SUBJECTS
from upstream_methods import Bright, Huddle, Shrink, remember

from vlmcompress.api import compress
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import get_method
from vlmcompress.methods.contracts.before_projector import Merge
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.mctf import MCTF
from vlmcompress.methods.pitome import PiToMe
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.pyramiddrop import PyramidDrop
from vlmcompress.methods.tome import ToMe
from vlmcompress.methods.unit_drop import UnitDrop
from vlmcompress.patches.families.tower_layers import attention_layers

TOWERS = [
    "random llava",
    "tiny-llava",
    "random llava-next",
    "random llava-onevision",
    "random video-llava with clips",
    "random vipllava",
]
PACKED = [
    "random qwen2-vl",
    "random qwen2.5-vl with clips",
    "tiny-qwen",
    "random qwen3-vl",
    "random qwen3-vl with clips",
]
CASES = [(name, (Huddle(),)) for name in TOWERS]
CASES += [(name, (method,)) for name in PACKED for method in (Shrink(), Bright())]
CASES += [
    ("random llava", (Huddle(proportional=False), DivPrune())),
    ("random llava-next", (Huddle(), DivPrune(), FastV())),
    ("random llava-onevision", (Huddle(), PyramidDrop())),
    ("random video-llava with clips", (Huddle(), DivPrune())),
    ("random qwen2.5-vl with clips", (Bright(), DivPrune(), PyramidDrop())),
    ("random qwen3-vl", (Bright(), FastV())),
    ("random qwen3-vl", (Shrink(), DivPrune())),
    # Each token of 6x3 stands for two, so that means over all members are means over tokens.
    ("random qwen2-vl", (Shrink(to=(6, 3)), Pool())),
]
CASES += [
    pytest.param(*case, marks=() if number in (0, 13) else pytest.mark.slow)
    for number, case in enumerate(
        [
            ("random qwen2.5-vl with clips", (UnitDrop(layer=2, score="farthest"), DivPrune())),
            ("random qwen2-vl", (UnitDrop(layer=1),)),
            ("random internvl", (UnitDrop(layer=1), DivPrune(), PyramidDrop())),
            ("random smolvlm", (UnitDrop(layer=0),)),
            ("random idefics3", (UnitDrop(layer=2), FastV())),
            ("random gemma3", (UnitDrop(layer=1), DivPrune())),
            ("tiny-llava", (UnitDrop(layer=0.5), DivPrune())),
            ("random llava-next", (UnitDrop(layer=1), FastV())),
            ("random video-llava with clips", (UnitDrop(layer=1), DivPrune())),
            ("random vipllava", (UnitDrop(layer=1),)),
            ("tiny-qwen", (UnitDrop(layer=0.5), DivPrune(), PyramidDrop())),
            ("random qwen3-vl", (UnitDrop(layer=1), DivPrune())),
            ("random qwen3-vl with clips", (UnitDrop(layer=0), FastV())),
            ("random qwen2.5-vl with clips", (Huddle(), DivPrune())),
            ("random qwen2-vl", (PiToMe(),)),
            ("random qwen3-vl", (ToMe(), PyramidDrop())),
            ("random qwen3-vl with clips", (ToMe(), DivPrune(), FastV())),
            ("tiny-qwen", (MCTF(floor=1), DivPrune())),
            ("random internvl", (Huddle(), DivPrune())),
            ("random idefics3", (ToMe(), FastV())),
            ("random smolvlm", (MCTF(floor=1),)),
            ("random gemma3", (PiToMe(), PyramidDrop())),
        ]
    )
]


def name_of(value: Any) -> str | None:
    return "+".join(m.name for m in value) if isinstance(value, tuple) else None


def prompts(subject: Any) -> list[Any]:
    return [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]


each = pytest.mark.parametrize(("name", "methods"), CASES, ids=name_of)


@each
def test_law_1_and_5_keeping_all_changes_not_one_bit_and_removing_leaves_nothing(name, methods):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    bare = last_logits(subject, inputs)
    untouched = snapshot(subject.model)
    with compress(subject.model, methods, budget="100%") as c:
        assert torch.equal(last_logits(subject, inputs), bare)
    assert not c.report().engaged
    with compress(subject.model, methods, budget="40%"):
        last_logits(subject, inputs)
    assert snapshot(subject.model) == untouched
    assert torch.equal(last_logits(subject, inputs), bare)


@each
def test_law_2_the_decoder_sees_one_of_each_group_and_law_7_it_differs(name, methods, monkeypatch):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    bare = last_logits(subject, inputs)
    with compress(subject.model, methods, budget="40%") as c:
        short = last_logits(subject, inputs)
        report = c.report()
        remember(subject, inputs, monkeypatch)
    assert report.engaged
    for image in report.images:
        check_groups(image, methods)
    if Pool() not in methods:
        # What stands for a group has its feature already.
        report = replace(report, images=[replace(i, groups=None) for i in report.images])
    assert (short - oracle(report, subject, inputs)).abs().max() < TOLERANCE
    assert ((short - bare).abs().amax(1) > 100 * TOLERANCE).all()


def check_groups(image: Any, methods: tuple[Any, ...]) -> None:
    """Disjoint groups with the kept tokens at their head; all tokens where nobody selects."""
    if isinstance(methods[0], Bright | UnitDrop):
        assert image.groups is None
        return
    assert [group[0] for group in image.groups] == image.kept
    assert all(group == sorted(group) for group in image.groups)
    members = sorted(token for group in image.groups for token in group)
    assert len(set(members)) == len(members) or isinstance(methods[-1], Pool)
    if not any(isinstance(method, DivPrune) for method in methods):
        assert sorted(set(members)) == list(range(image.before))


@each
def test_law_3_and_4_generating_with_a_cache_and_in_a_batch(name, methods):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    with compress(subject.model, methods, budget="40%") as c:
        cached = subject.generate(inputs)
        images = c.report().images
        assert torch.equal(cached, subject.generate(inputs, use_cache=False))
        beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3}
        found = subject.generate(inputs, **beams)
        assert torch.equal(found, subject.generate(inputs, use_cache=False, **beams))
        for row, prompt in enumerate(prompts(subject)):
            single = subject.batch(prompt)
            answer = subject.generate(single)[0, single["input_ids"].shape[1] :]
            assert torch.equal(cached[row, inputs["input_ids"].shape[1] :], answer)
            mine = [i for i in images if i.row == row]
            for one, other in zip(mine, c.report().images, strict=True):
                assert (one.kept, one.cuts, one.groups) == (other.kept, other.cuts, other.groups)


@pytest.mark.parametrize(("name", "method"), [("random llava", Huddle()), (PACKED[3], Bright())])
@pytest.mark.parametrize("images", [0, 1])
def test_law_3_a_second_turn_on_the_cache(name, method, images, monkeypatch):
    subject = subject_of(name)
    report, whole, logits = second_turn(subject, method, images)
    with compress(subject.model, method, budget="25%"):
        remember(subject, whole, monkeypatch)
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


@torch.no_grad()
def by_hand(tower: Any, pixels: torch.Tensor, method: Any, counts: Any, states: Any) -> Any:
    """state -> [B, T, D] expanded, and the last groups of each tile."""
    kept = tower.config._attn_implementation
    tower.config._attn_implementation = "eager"
    hidden = tower.embeddings(pixels)
    hidden = tower.pre_layrnorm(hidden) if hasattr(tower, "pre_layrnorm") else hidden
    protected, total = int(hasattr(tower, "pre_layrnorm")), hidden.shape[1]
    groups = [[[place] for place in range(total)] for _ in hidden]
    found = {}
    for number, (layer, attention) in enumerate(attention_layers(tower)[: max(states)]):
        sizes = torch.tensor([[float(len(group)) for group in tile] for tile in groups])
        mask = sizes.log()[:, None, None] if method.proportional else None
        x = layer.layer_norm1(hidden)
        out, weights = attention(hidden_states=x, attention_mask=mask)
        hidden = hidden + out
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        if number in counts:
            keys = attention.k_proj(x)
            view = Plain(
                number,
                max(states),
                protected,
                hidden,
                sizes,
                weights.mean((1, 2)),
                keys,
                weights.shape[1],
            )
            merge = method.merge(view, counts[number])
            rows = []
            for b, tile in enumerate(groups):
                joined: dict[int, list[int]] = {}
                for place, leader in enumerate(merge.leader[b].tolist()):
                    joined.setdefault(leader, []).append(place)
                order = sorted(joined.values(), key=min)
                w = merge.weights[b]
                mean = [(w[g, None] * hidden[b, g]).sum(0) / w[g].sum() for g in order]
                rows.append(torch.stack(mean))
                groups[b] = [sorted(m for place in g for m in tile[place]) for g in order]
            hidden = torch.stack(rows)
        if number + 1 in states:
            whole = torch.empty(len(hidden), total, hidden.shape[-1])
            for b, tile in enumerate(groups):
                for place, members in enumerate(tile):
                    whole[b, members] = hidden[b, place]
            found[number + 1] = whole
    tower.config._attn_implementation = kept
    return found, groups


@pytest.mark.pairs
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method", [Huddle(), Huddle(proportional=False), "tome", "pitome", "mctf"], ids=str
)
@pytest.mark.parametrize("name", TOWERS)
def test_merging_in_the_tower_equals_a_loop_by_hand(name, method, attention):
    method = get_method(method) if isinstance(method, str) else method
    subject = subject_of(name)
    subject.model.set_attn_implementation(attention)
    inputs = subject.batch(*prompts(subject))
    (tower,) = running_towers(subject)
    states, patches = feature_states(subject, tower)
    keep = round(0.65 * patches * subject.frames) // subject.frames
    counts = shrinking(method.schedule(max(states), patches, keep), patches)
    seen: list[torch.Tensor] = []
    hook = tower.register_forward_pre_hook(
        lambda _, args, given: seen.append(args[0] if args else given["pixel_values"]),
        with_kwargs=True,
    )
    bare = subject.encode(inputs).hidden_states
    with compress(subject.model, method, budget="65%") as c, torch.no_grad():
        short = subject.encode(inputs).hidden_states
        last_logits(subject, inputs)
    hook.remove()
    expected, groups = by_hand(tower, seen[0], method, counts, states)
    for state in states:
        assert (short[state] - expected[state]).abs().max() < TOLERANCE
    assert (short[max(states)] - bare[max(states)]).abs().max() > 100 * TOLERANCE
    if subject.extra is None:  # else tiles are packed and cut
        assert c.report().images[0].groups == in_frames(groups, patches, c.report().images[0])


def feature_states(subject: Any, tower: Any) -> tuple[list[int], int]:
    """Hidden states that become features, and patches of a tile."""
    config, layers = subject.model.config, len(attention_layers(tower))
    asked = getattr(config, "vision_feature_layer", None) or config.vision_feature_layers
    states = [asked] if isinstance(asked, int) else asked
    side = tower.config.image_size // tower.config.patch_size
    return [range(layers + 1)[state] for state in states], side * side


def in_frames(groups: Any, patches: int, image: Any) -> list[list[int]]:
    """Groups of the tiles of a clip in raster indices, without CLS."""
    first = len([g for g in groups[0] if g == [0]]) and sum(map(len, groups[0])) - patches
    return [
        [frame * patches + member - first for member in group]
        for frame in range(image.grid[0])
        for group in groups[frame]
        if group[0] >= first
    ]


@dataclass(frozen=True)
class Told(Huddle):
    """Merges as it is told."""

    leader: tuple[int, ...] = ()

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        return {0: keep}

    def merge(self, view: Any, count: int) -> Merge:
        leader = torch.tensor(self.leader).expand(len(view.hidden), -1)
        return Merge(leader, torch.ones_like(leader, dtype=torch.float32))


def leaders(*pairs: tuple[int, int]) -> tuple[int, ...]:
    found = list(range(37))
    for member, leader in pairs:
        found[member] = leader
    return tuple(found)


@pytest.mark.parametrize(
    "wrong",
    [
        leaders((2, 1), (3, 2)),  # a leader with a leader
        leaders((0, 1), (2, 1)),  # CLS is merged
        leaders((1, 0), (2, 1)),  # with CLS
        leaders((2, 1)),  # too few
        leaders((2, 1), (3, 37)),  # nobody
        (0,) * 5,
    ],
)
def test_a_wrong_merge_is_one_clear_error(wrong):
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, Told(leader=leaders((2, 1), (4, 3))), budget=34) as c:
        last_logits(subject, inputs)
        assert c.report().images[0].groups[:3] == [[0, 1], [2, 3], [4]]
    with (
        compress(subject.model, Told(leader=wrong), budget=34),
        pytest.raises(VLMCompressError, match="huddle must give"),
    ):
        last_logits(subject, inputs)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({3: 14}, "scheduled 14 tokens after layer 3"),
        ({0: 9}, "scheduled 9 tokens after layer 0"),
        ({0: 20, 1: 25}, "scheduled 25 tokens after layer 1"),
        ({0: 20}, "scheduled 20 tokens, 14 were due"),
    ],
)
def test_a_wrong_schedule_is_one_clear_error(monkeypatch, schedule, words):
    subject = subject_of("random llava")
    monkeypatch.setattr(Huddle, "schedule", lambda *_: schedule)
    with (
        compress(subject.model, Huddle(), budget="40%"),
        pytest.raises(VLMCompressError, match=words),
    ):
        last_logits(subject, subject.batch(subject.prompt(1, 1)))


@pytest.mark.parametrize("name", [n for n in SUBJECTS if "clips" in n and "llava-" in n][:2])
def test_pooled_clips_are_refused(name):
    subject = subject_of(name)
    with (
        compress(subject.model, Huddle(), budget="40%"),
        pytest.raises(UnsupportedCallError, match="pools the patches of clips"),
    ):
        last_logits(subject, subject.batch(subject.prompt(1, 1)))


def test_towers_of_which_too_little_is_known_are_refused():
    with pytest.raises(CompositionError, match="huddle acts at the encoder stage"):
        compress(subject_of("random mistral3").model, Huddle())


@pytest.mark.parametrize("method", [Shrink(), Bright()])
def test_towers_of_one_size_are_refused(method):
    with pytest.raises(CompositionError, match="acts at the pixels stage"):
        compress(subject_of("random llava").model, method)


def test_an_image_that_is_shrunk_after_the_tower_is_refused():
    subject = subject_of("random llava-onevision")
    ids, pixels = subject.prompt(1, 1)
    inputs = subject.batch((ids, pixels)) | {"vision_aspect_ratio": "anyres_max_1"}
    with (
        compress(subject.model, Huddle(), budget="40%"),
        pytest.raises(UnsupportedCallError, match="one token for each block of patches"),
    ):
        subject.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], vision_aspect_ratio="anyres_max_1"
        )


def test_a_number_of_tokens_is_no_budget_inside_a_tiled_tower():
    subject = subject_of("random llava-next")
    with (
        compress(subject.model, Huddle(), budget=16),
        pytest.raises(BudgetError, match="give a share"),
    ):
        last_logits(subject, subject.batch(subject.prompt(1, 1)))


@pytest.mark.parametrize(("name", "first"), [("random llava", Huddle()), (PACKED[0], Bright())])
def test_signals_of_the_tower_are_not_defined_behind_it(name, first):
    subject = subject_of(name)

    class Asks(DivPrune):
        name = "asks"
        needs = frozenset({"keys"})

    with pytest.raises(CompositionError, match=f"asks needs keys, .* behind {first.name}"):
        compress(subject.model, [first, Asks()], budget="40%")


def test_proportional_attention_refuses_flash_attention(monkeypatch):
    subject = subject_of("random llava")
    (tower,) = running_towers(subject)
    monkeypatch.setattr(tower.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(UnsupportedModelError, match="attends in proportion to sizes"):
        compress(subject.model, Huddle(), budget="40%")
    compress(subject.model, Huddle(proportional=False), budget="40%").remove()


@pytest.mark.parametrize(("name", "method"), [("random llava", Huddle()), (PACKED[0], Shrink())])
@torch.no_grad()
def test_features_go_with_the_compression_that_encoded_them(name, method):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1))
    rest = {n: v for n, v in inputs.items() if not n.startswith("pixel")}
    with compress(subject.model, "divprune", budget="40%"):
        other = subject.encode(inputs)
    with compress(subject.model, method, budget="40%") as c:
        mine = subject.encode(inputs)
        found = subject.model(mm_encoder_outputs={"image": mine}, **rest).logits
        assert c.report().engaged
        assert torch.equal(found, subject.model(**inputs).logits)
        with pytest.raises(UnsupportedCallError, match=f"not encoded with {method.name}"):
            subject.model(mm_encoder_outputs={"image": other}, **rest)
    for output in (mine, other):
        with (
            compress(subject.model, method, budget="40%"),
            pytest.raises(UnsupportedCallError, match=f"not encoded with {method.name}"),
        ):
            subject.model(mm_encoder_outputs={"image": output}, **rest)
    with (
        compress(subject.model, "divprune", budget="40%"),
        pytest.raises(UnsupportedCallError, match="not encoded with divprune"),
    ):
        subject.model(mm_encoder_outputs={"image": mine}, **rest)
