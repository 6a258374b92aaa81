"""Which tokens unit-drop keeps, and before which layer."""

import pytest
import torch

from vlmcompress.errors import BudgetError, CompositionError, VLMCompressError
from vlmcompress.methods import get_method
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import TokenPatches
from vlmcompress.methods.unit_drop import UnitDrop
from vlmcompress.tokens import Grid

STAGES = ("pixels", "encoder", "projector", "decoder")


def chosen(method, rows, count):
    """Of tokens whose patches are given, one picture."""
    hidden = torch.tensor(rows, dtype=torch.float32)[None]
    return method.select(TokenPatches(hidden, Grid(1, 1, len(rows))), count)[0].tolist()


def test_spread_keeps_the_tokens_whose_patches_differ_most():
    # Squared distances from the mean: 0, 2 * 1, 2 * 4, 2 * 0.25 + 2 * 0.25.
    rows = [
        [[5, 5], [5, 5]],
        [[0, 0], [2, 0]],
        [[1, -2], [1, 2]],
        [[0, 0], [1, 1]],
    ]
    assert chosen(UnitDrop(), rows, 1) == [2]
    assert chosen(UnitDrop(), rows, 2) == [1, 2]
    assert chosen(UnitDrop(), rows, 3) == [1, 2, 3]


def test_equal_spreads_keep_the_first():
    assert chosen(UnitDrop(), [[[1], [1]]] * 4, 2) == [0, 1]


def test_farthest_compares_means_as_they_are():
    # Means at 0, 10, 90 and 190 degrees; the first pick, 190, is 100 from its nearest.
    rows = [
        [[2, 0], [0, 0]],
        [[0.9848, 0.1736], [0.9848, 0.1736]],
        [[0, 1], [0, 1]],
        [[-0.9848, -0.1736], [-0.9848, -0.1736]],
    ]
    method = UnitDrop(score="farthest")
    assert chosen(method, rows, 1) == [3]
    assert chosen(method, rows, 2) == [1, 3]
    assert chosen(method, rows, 3) == [1, 2, 3]


def by_hand(rows, count):
    """The same as `spread` in plain loops."""
    scores = []
    for patches in rows.tolist():
        mean = [sum(values) / len(patches) for values in zip(*patches, strict=True)]
        scores.append(sum((v - m) ** 2 for p in patches for v, m in zip(p, mean, strict=True)))
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return sorted(order[:count])


@pytest.mark.parametrize("seed", range(10))
def test_spread_equals_a_plain_loop_and_a_batch_its_members(seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 12, 4, 5, generator=g)
    count = 1 + seed
    found = UnitDrop().select(TokenPatches(rows, Grid(1, 3, 4)), count)
    assert found.tolist() == [by_hand(tile, count) for tile in rows]
    for score in ("spread", "farthest"):
        method = UnitDrop(score=score)
        both = method.select(TokenPatches(rows.bfloat16(), Grid(1, 3, 4)), count)
        alone = [
            method.select(TokenPatches(tile[None].bfloat16(), Grid(1, 3, 4)), count)[0]
            for tile in rows
        ]
        assert torch.equal(both, torch.stack(alone))


@pytest.mark.parametrize(
    ("layer", "depth", "before"),
    [(0, 6, 0), (5, 6, 5), (0.25, 32, 8), (0.5, 27, 14), (0.0, 4, 0), (0.99, 24, 23), (0.5, 1, 0)],
)
def test_a_layer_is_a_number_or_a_share(layer, depth, before):
    assert UnitDrop(layer=layer).before(depth) == before


def test_what_is_out_of_range_is_refused():
    with pytest.raises(VLMCompressError, match="layer 6 is not in a vision tower of 6 layers: "):
        UnitDrop(layer=6).before(6)
    with pytest.raises(VLMCompressError, match=r"a share from 0 to below 1, got 1\.0"):
        UnitDrop(layer=1.0)
    with pytest.raises(VLMCompressError, match="layer must be 0 or more"):
        UnitDrop(layer=-1)
    with pytest.raises(VLMCompressError, match="layer must be"):
        UnitDrop(layer="half")
    with pytest.raises(VLMCompressError, match="score must be one of 'auto', 'spread', 'farthest'"):
        UnitDrop(score="norm")
    with pytest.raises(VLMCompressError, match="a token is one patch: give score="):
        chosen(UnitDrop(score="spread"), [[[1.0]], [[2.0]]], 1)


def test_counts_are_shares_of_the_grid():
    assert UnitDrop().keep_count(Grid(1, 6, 6), None) == 9
    assert UnitDrop(ratio=0.5).keep_count(Grid(4, 6, 6), None) == 72
    assert UnitDrop().keep_count(Grid(1, 6, 6), 50) == 36


def test_it_stands_before_the_others_and_goes_half_of_the_way():
    pipeline = parse("divprune+pyramiddrop+unit-drop(layer=0.5)").for_stages("qwen", STAGES)
    assert pipeline.name == "unit-drop+divprune+pyramiddrop"
    plan = parse("unit-drop+divprune").plan(Grid(1, 8, 8), 4, 16)
    assert (plan.given, plan.keep) == (32, 16)
    with pytest.raises(CompositionError, match="both act at the encoder stage"):
        parse("unit-drop+tome")
    with pytest.raises(CompositionError, match="pixelprune acts on pixels and unit-drop in the"):
        parse("unit-drop+pixelprune")
    with pytest.raises(CompositionError, match="needs tokens on their grid"):
        parse("unit-drop+pool")
    with pytest.raises(BudgetError, match="unit-drop looks at a clip as a whole"):
        parse("unit-drop").plan(Grid(2, 4, 4), 4, 8, per_frame=True)


def test_a_tower_that_lets_methods_in_takes_those_that_drop_and_those_that_merge():
    assert parse("unit-drop").for_stages("qwen", STAGES).methods == (UnitDrop(),)
    assert parse("tome").for_stages("qwen", STAGES).methods == (get_method("tome"),)
    for spec in ("unit-drop", "tome"):
        with pytest.raises(CompositionError, match=f"{spec} acts at the encoder stage, which x do"):
            parse(spec).for_stages("x", ("projector", "decoder"))
    assert get_method("tome", stage="projector").acts_at == "projector"
