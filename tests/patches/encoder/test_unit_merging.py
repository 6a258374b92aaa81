"""Tokens of several patches merged between the layers of a tower, against a tower by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from bare import bare, last_logits
from bare_tower import feature_depth, running_towers
from built_subjects import BLOCKS, PACKED, subject_of
from cut_pixels import encode, every_feature, given, pictures
from merged_tower import MergedTower, packed_tiles, picture_groups, shrinking, square_tiles

from vlmcompress.api import compress
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import Merge
from vlmcompress.methods.tome import ToMe
from vlmcompress.ops.merge import bipartite
from vlmcompress.patches.encoder.packed_merging import _Frames
from vlmcompress.patches.encoder.tile_merging import _Tiles
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.tokens import Grid

DEFAULT = ["random qwen2.5-vl", "random qwen3-vl with clips", "random internvl", "random smolvlm"]


def once(name: str, *rest: Any) -> Any:
    """A few families in the default tier."""
    return pytest.param(name, *rest, marks=() if name in DEFAULT else pytest.mark.slow)


PACKED_ONCE = [once(name) for name in PACKED]
TILES_ONCE = [once(name, *facts) for name, facts in BLOCKS.items()]


@dataclass(frozen=True)
class Once(ToMe):
    """Merges behind one layer."""

    name: ClassVar[str] = "once"
    layer: int = 0

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        return {self.layer: keep}


METHODS = ["tome", "tome(proportional=False)", "pitome", "mctf(floor=1)"]


def depth_of(subject: Any) -> int:
    (tower,) = running_towers(subject)
    return feature_depth(subject, len(attention_layers(tower)))


def methods_for(subject: Any, spec: str) -> list[Any]:
    """A registered method; or of "once" one for each layer."""
    if spec != "once":
        return [parse(spec).upstream]
    return [Once(layer=layer) for layer in range(depth_of(subject))]


@pytest.mark.pairs
@pytest.mark.parametrize("share", [0.8, 0.6])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", ["once", *METHODS])
@pytest.mark.parametrize("name", PACKED_ONCE)
def test_merging_equals_a_tower_by_hand(name, spec, attention, share, monkeypatch):
    """Two pictures or clips of other sizes, windows that lose tokens, every layer of the tower."""
    subject = subject_of(name)
    sizes = [(6, 6), (5, 8)]
    _, inputs = pictures(subject, sizes)
    (tower,) = running_towers(subject)
    depth, untouched = depth_of(subject), every_feature(encode(subject, inputs))
    for method in methods_for(subject, spec):

        def counts(tokens: int, method: Any = method) -> dict[int, int]:
            keep = round(share * tokens * subject.frames) // subject.frames
            return shrinking(method.schedule(depth, tokens, keep), tokens)

        hand = MergedTower(subject, tower, depth, method, packed_tiles(subject, inputs, counts))
        expected = every_feature(hand.run(lambda: encode(subject, inputs), monkeypatch))
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, method, budget=f"{share:.0%}"):
            found = every_feature(encode(subject, inputs))
        subject.model.set_attn_implementation("sdpa")
        for mine, other in zip(found, expected, strict=True):
            assert max((a - b).abs().max() for a, b in zip(mine, other, strict=True)) < 1e-4
        moved = max((a - b).abs().max() for a, b in zip(found[0], untouched[0], strict=True))
        assert moved > 1e-2


@pytest.mark.pairs
@pytest.mark.parametrize("share", ["80%", "60%"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", ["once", *METHODS])
@pytest.mark.parametrize(("name", "block", "cls"), TILES_ONCE)
def test_merging_in_tiles_equals_a_tower_by_hand(
    name, block, cls, spec, attention, share, monkeypatch
):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    vision = subject.model.config.vision_config
    size, patch = (
        n[0] if isinstance(n, list | tuple) else n for n in (vision.image_size, vision.patch_size)
    )
    side = size // patch
    (tower,) = running_towers(subject)
    tiles = len(next(v for n, v in inputs.items() if n.startswith("pixel")).flatten(0, -4))
    depth = depth_of(subject)
    with torch.no_grad():
        untouched = subject.features(inputs)
    for method in methods_for(subject, spec):

        def counts(tokens: int, method: Any = method) -> dict[int, int]:
            keep = round(float(share[:-1]) / 100 * tokens)
            return shrinking(method.schedule(depth, tokens, keep), tokens)

        own = square_tiles(tiles, side, block, cls, counts)
        hand = MergedTower(subject, tower, depth, method, own)
        expected = hand.run(lambda: subject.features(inputs), monkeypatch)
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, method, budget=share) as c:
            last_logits(subject, inputs)
            images = c.report().images
            with torch.no_grad():
                found = subject.features(inputs)
        subject.model.set_attn_implementation("sdpa")
        assert (found - expected).abs().max() < 1e-4
        assert (found - untouched).abs().max() > 1e-2
        each = len(own) // len(images)
        for number, image in enumerate(images):
            mine = own[number * each : (number + 1) * each]
            assert image.groups == picture_groups(mine)


@pytest.mark.pairs
@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("name", [*PACKED_ONCE, *map(once, BLOCKS)])
def test_keeping_all_changes_not_one_bit_and_removing_leaves_nothing(name, spec):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9))
    logits, untouched = bare(subject, inputs).logits, snapshot(subject.model)
    with compress(subject.model, spec, budget="100%") as c:
        assert torch.equal(last_logits(subject, inputs), logits)
    assert not c.report().engaged
    with compress(subject.model, spec, budget="60%") as c:
        short = last_logits(subject, inputs)
    assert all(image.groups for image in c.report().images)
    assert ((short - logits).abs().amax(1) > 1e-3).all()
    assert snapshot(subject.model) == untouched
    assert torch.equal(last_logits(subject, inputs), logits)


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize(
    "name", [once(name) for name in PACKED if "qwen3" in name or "2.5" in name]
)
def test_pictures_of_several_sizes_are_merged_as_each_by_itself(name, spec):
    """One of them is a single token, and stays as it is."""
    subject = subject_of(name)
    sizes = [(1, 1), (4, 6), (5, 5)]

    def features(some: list[tuple[int, int]], at: slice = slice(None)) -> Any:
        frames, _ = pictures(subject, sizes)
        inputs = given(subject, frames[at])
        with compress(subject.model, spec, budget="80%"):
            return every_feature(encode(subject, inputs))

    together = features(sizes)
    alone = [features(sizes, slice(n, n + 1)) for n in range(len(sizes))]
    whole = every_feature(encode(subject, pictures(subject, sizes)[1]))
    for stack, found in enumerate(together):
        for number, mine in enumerate(found):
            assert (mine - alone[number][stack][0]).abs().max() < 1e-4
    assert (together[0][0] - whole[0][0]).abs().max() < 1e-4
    assert (together[0][1] - whole[0][1]).abs().max() > 1e-2


def test_both_kinds_of_tower_merge_in_the_same_order():
    """And where a tower knows places, a group is at that of its leader."""
    g = torch.Generator().manual_seed(0)
    hidden, order = torch.randn(2, 24, 5, generator=g), torch.randperm(48, generator=g)
    tiles = _Tiles(hidden, 0, torch.arange(24)[:, None])
    frames = _Frames(Grid(2, 4, 6), order, {})
    patches, count = hidden[:, :, None], 24
    for remove in (5, 9, 3):
        metric = torch.randn(2, count, 4, generator=g)
        leader = bipartite(metric, remove)
        merge, led = Merge(leader, tiles.sizes), frames.places.gather(1, leader)
        before, count = frames.places, count - remove
        first, _ = tiles.merge(patches, merge, count)
        patches = frames.follow(patches, merge, count)
        assert torch.equal(first, patches)
        assert torch.equal(tiles.slot, frames.slot)
        assert torch.equal(tiles.sizes, frames.sizes)
        for tile in range(2):
            pairs = dict.fromkeys(led[tile].tolist())  # in the order of the smallest member
            assert frames.places[tile].tolist() == list(pairs)
            assert set(frames.places[tile].tolist()) < set(before[tile].tolist())


def test_a_count_of_tokens_is_of_an_image_with_all_of_its_tiles():
    subject = subject_of("random internvl")
    inputs = subject.batch(subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9))
    for spec, left, after in (("tome", 15, 15), ("tome+divprune", 21, 15)):
        with compress(subject.model, spec, budget=15) as c:
            cached = subject.generate(inputs)
            assert torch.equal(cached, subject.generate(inputs, use_cache=False))
        assert {(one.given, one.after) for one in c.report().images} == {(left, after)}


def test_masked_patches_of_tiles_are_refused():
    subject = subject_of("random smolvlm")
    inputs = subject.batch(subject.prompt(1, 1))
    mask = torch.ones_like(inputs["pixel_values"][:, :, 0], dtype=torch.bool)
    with compress(subject.model, "tome", budget="60%"):
        open_ = last_logits(subject, inputs)
        assert torch.equal(last_logits(subject, inputs | {"pixel_attention_mask": mask}), open_)
        mask[:, 0, -8:] = False
        with pytest.raises(UnsupportedCallError, match="merges in tiles without padding"):
            last_logits(subject, inputs | {"pixel_attention_mask": mask})


def test_what_a_tower_cannot_do_is_one_clear_error(monkeypatch):
    qwen, internvl = subject_of("random qwen2.5-vl"), subject_of("random internvl")
    for subject in (qwen, internvl):
        (tower,) = running_towers(subject)
        with monkeypatch.context() as patch:
            patch.setattr(tower.config, "_attn_implementation_internal", "flash_attention_2")
            with pytest.raises(UnsupportedModelError, match="or proportional=False"):
                compress(subject.model, "tome", budget="60%")
            compress(subject.model, "tome(proportional=False)", budget="60%").remove()
        inputs = subject.batch(subject.prompt(1, 1))
        with (
            compress(subject.model, "tome", budget="3%"),
            pytest.raises(BudgetError, match=r"tome (leaves at least|can leave)"),
        ):
            last_logits(subject, inputs)
    clips = subject_of("random qwen2.5-vl with clips")
    with pytest.raises(CompositionError, match="leave one of them out"):
        compress(clips.model, "tome", budget="60%", max_memory="1GB")
