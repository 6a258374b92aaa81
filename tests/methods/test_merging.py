"""Mergers: between the layers of a tower, after the projector, and AIM inside frames."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from mergers import AFTER, MERGERS, by_name, randn

from vlmcompress.errors import BudgetError, CompositionError, VLMCompressError
from vlmcompress.methods.aim_merge import AimMerge
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.mctf import MCTF
from vlmcompress.methods.pitome import PiToMe
from vlmcompress.methods.tome import ToMe
from vlmcompress.ops.groups import reduce
from vlmcompress.ops.merge import bipartite, energy_matching, three_factor
from vlmcompress.tokens import Grid, VisualTokens


@dataclass
class View:
    """What a method sees after a layer of a tower."""

    layer: int = 3
    layers: int = 23
    tiles: int = 2
    patches: int = 9
    protected: int = 1

    def __post_init__(self):
        n = self.patches + self.protected
        self.hidden = randn(self.tiles, n, 6, seed=1)
        self.sizes = 1.0 + torch.arange(self.tiles * n).reshape(self.tiles, n) % 3
        self._keys = randn(self.tiles, n, 4, seed=2)
        self._received = randn(self.tiles, n, seed=3).softmax(-1)

    def keys(self):
        return self._keys

    def received(self):
        return self._received


@pytest.mark.parametrize("merger", MERGERS, **by_name)
@pytest.mark.parametrize("protected", [0, 1])
def test_a_merge_leaves_the_count_and_the_protected_tokens(merger, protected):
    for patches in (1, 2, 5, 8):
        view = View(patches=patches, protected=protected)
        before = view.hidden.clone()
        for count in range(patches - patches // 2, patches + 1):
            merge = merger.merge(view, count)
            n = patches + protected
            assert merge.leader.shape == merge.weights.shape == (2, n)
            assert merge.leader.dtype == torch.int64
            assert merge.weights.dtype == torch.float32
            assert (merge.weights > 0).all()
            for tile in merge.leader:
                heads = tile.unique()
                assert len(heads) == count + protected
                assert torch.equal(tile[heads], heads)
                assert (tile[:protected] == torch.arange(protected)).all()
                assert (tile[protected:] >= protected).all()
            made, _ = reduce(view.hidden, merge.leader, merge.weights)
            assert made.shape == (2, count + protected, 6)
            assert torch.equal(made[:, :protected], before[:, :protected])
        assert torch.equal(view.hidden, before)


@pytest.mark.parametrize("merger", MERGERS, **by_name)
def test_a_merge_of_more_than_half_is_refused(merger):
    for count in (4, 10, 0):
        with pytest.raises(
            VLMCompressError, match=f"9 patches to 5 to 9 in one layer, got {count}"
        ):
            merger.merge(View(), count)


def test_tome_compares_keys_and_weighs_by_size():
    view = View()
    merge = ToMe().merge(view, 6)
    assert torch.equal(merge.leader, bipartite(view.keys(), 3, 1))
    assert not torch.equal(merge.leader, bipartite(view.hidden, 3, 1))
    assert torch.equal(merge.weights, view.sizes)


def test_pitome_compares_outputs_and_goes_by_energy_in_the_second_half():
    # 13 of CLIP's 24 layers, of which the features go through 23, merge without energies.
    for layer in range(23):
        view = View(layer=layer)
        merge = PiToMe().merge(view, 6)
        late = energy_matching(view.hidden, 3, 0.9 - 0.9 * layer / 24, 1)
        expected = bipartite(view.hidden, 3, 1) if layer <= 12 else late
        assert torch.equal(merge.leader, expected)
        assert torch.equal(merge.weights, torch.ones(2, 10))
        assert not torch.equal(bipartite(view.hidden, 3, 1), late)
    assert torch.equal(PiToMe(means="size").merge(view, 6).weights, view.sizes)


def test_the_margin_of_pitome_falls_with_depth(monkeypatch):
    margins = []

    def spy(metric, remove, margin, protected):
        margins.append(margin)
        return energy_matching(metric, remove, margin, protected)

    monkeypatch.setattr("vlmcompress.methods.pitome.energy_matching", spy)
    for layer in (13, 18, 22):
        PiToMe().merge(View(layer=layer), 6)
    PiToMe(margin=0.5).reduce(VisualTokens(randn(16, 8), Grid(1, 4, 4)), 3)
    # 16 -> 8 -> 4 -> 3: three rounds.
    expected = [0.9 * 11 / 24, 0.9 * 6 / 24, 0.9 * 2 / 24, 0.5, 1 / 3, 1 / 6]
    assert margins == pytest.approx(expected)


def test_mctf_compares_keys_attention_and_sizes():
    view = View()
    merge = MCTF().merge(view, 5)
    args = (view.keys(), view.received(), view.sizes, 4, 1)
    assert torch.equal(merge.leader, three_factor(*args))
    weights = view.sizes * view.received()
    torch.testing.assert_close(merge.weights, weights / view.received().amax(1, keepdim=True))
    other = MCTF(tau_similarity=9.0, tau_attention=0.5, tau_size=0.2)
    leader = three_factor(*args, temperatures=(9.0, 0.5, 0.2))
    assert torch.equal(other.merge(view, 5).leader, leader)
    assert not torch.equal(leader, merge.leader)
    one_way = MCTF(both_ways=False).merge(view, 5).leader
    assert torch.equal(one_way, three_factor(*args, both_ways=False))
    assert not torch.equal(one_way, merge.leader)
    assert torch.equal(MCTF(means="plain").merge(view, 5).weights, torch.ones(2, 10))
    assert torch.equal(MCTF(means="size").merge(view, 5).weights, view.sizes)


@pytest.mark.parametrize("merger", MERGERS, **by_name)
def test_schedules_fall_to_the_count_by_at_most_half(merger):
    for layers in (1, 2, 4, 23, 27):
        for tokens in (1, 2, 9, 100, 576):
            for keep in {1, 2, 7, tokens // 3, tokens // 2, tokens - 1, tokens}:
                least = tokens
                for _ in range(layers - (merger.name == "mctf" and layers > 1)):
                    least -= least // 2
                if not least <= keep <= tokens:
                    with pytest.raises(BudgetError, match=f"can leave {least} to {tokens}"):
                        merger.schedule(layers, tokens, keep)
                    continue
                schedule = merger.schedule(layers, tokens, keep)
                left = tokens
                assert list(schedule) == sorted(schedule)
                for layer, count in schedule.items():
                    assert 0 <= layer < layers
                    assert left - left // 2 <= count < left
                    left = count
                assert left == keep


def test_a_schedule_meets_what_halving_can_and_no_less():
    assert ToMe().schedule(3, 16, 2) == {0: 8, 1: 4, 2: 2}
    assert PiToMe().schedule(3, 16, 2) == {0: 8, 1: 4, 2: 2}
    # Nothing merges in the first layer of MCTF, unless it is the only one.
    assert MCTF().schedule(4, 16, 2) == {1: 8, 2: 4, 3: 2}
    assert MCTF().schedule(1, 16, 8) == {0: 8}
    for merger, layers in ((ToMe(), 3), (PiToMe(), 3), (MCTF(), 4)):
        words = f"{merger.name} can leave 2 to 16 of 16 patches in a tower of 3 layers"
        for keep in (1, 0, 17):
            with pytest.raises(BudgetError, match=f"{words} where it merges, got {keep}"):
                merger.schedule(layers, 16, keep)


def test_tome_takes_the_same_number_in_every_layer():
    assert list(ToMe().schedule(23, 576, 576 - 23 * 16).values()) == list(range(560, 207, -16))
    # 512 / 23 = 22.3: 23 in all layers, 6 in the last.
    counts = [576, *ToMe().schedule(23, 576, 64).values()]
    assert [a - b for a, b in pairwise(counts)] == [23] * 22 + [6]


def test_mctf_has_the_lengths_of_its_paper():
    # DeiT-S: 196 patches, 16 in layers 1 to 11; CLS counts in the paper's 197, 181, ..., 21.
    counts = MCTF().schedule(12, 196, 20)
    assert counts == {layer: 196 - 16 * layer for layer in range(1, 12)}


@pytest.mark.parametrize(
    ("rho", "left"),
    [(0.85, 17), (0.875, 30), (0.9, 54), (0.925, 101), (0.95, 183), (0.975, 330)],
)
def test_pitome_leaves_what_its_share_leaves(rho, left):
    merger = PiToMe(rho=rho)
    assert merger.keep_count(Grid(1, 24, 24), None) == left
    counts, tokens = {}, 576
    for layer in range(23):
        tokens -= int(tokens - tokens * rho)
        counts[layer] = tokens
    assert tokens == left
    assert merger.schedule(23, 576, left) == counts
    # The share that another rho has to solve is the same, but for the rounding of single layers.
    solved = PiToMe(rho=0.5).schedule(23, 576, left)
    assert list(solved) == list(range(23))
    assert all(abs(solved[layer] - counts[layer]) <= 6 for layer in range(23))


def test_pitome_keeps_a_constant_share_for_every_budget():
    for keep in range(10, 560, 7):
        counts = [576, *PiToMe().schedule(23, 576, keep).values()]
        shares = [b / a for a, b in pairwise(counts)]
        # A share of n is met to within one token; the last layers may take the rest.
        rho = max(share - 1 / n for share, n in zip(shares, counts, strict=False))
        assert all(share >= rho - 1e-9 for share in shares)
        assert counts[-1] == keep


def test_the_floor_of_mctf_holds_in_the_tower_only():
    assert MCTF().keep_count(Grid(1, 4, 4), 10) == 10
    assert MCTF().keep_count(Grid(1, 2, 3), 6) == 6
    assert MCTF(floor=3).keep_count(Grid(1, 4, 4), 3) == 3
    assert MCTF(stage="projector").keep_count(Grid(1, 4, 4), 3) == 3
    with pytest.raises(BudgetError, match="mctf leaves at least 10 tokens of a grid of 4x4, got 9"):
        MCTF().keep_count(Grid(1, 4, 4), 9)


def test_where_mergers_act():
    for merger, after in zip(MERGERS, AFTER, strict=True):
        assert merger.acts_at == "encoder"
        assert after.acts_at == "projector"
        both = ("encoder", "projector", "decoder")
        assert merger.settled("clip", both) is merger
        assert after.settled("clip", both) is after
        # Where the tower lets nobody in.
        with pytest.raises(CompositionError, match=r"\(stage='projector'\)\" is possible"):
            merger.settled("qwen", ("projector", "decoder"))
        with pytest.raises(CompositionError, match=f"{after.name} acts at the projector stage"):
            after.settled("odd", ("decoder",))
        assert Pipeline.of([merger]).upstream is merger
        assert Pipeline.of([after]).projector is after
    assert [merger.proportional for merger in MERGERS] == [True, False, True]
    assert not ToMe(proportional=False).proportional
    assert Pipeline.of([ToMe(), PiToMe(stage="projector")]).name == "tome+pitome"


def test_signals_are_asked_for_only_where_they_are_read():
    assert [after.asks for after in AFTER] == [set(), set(), {"encoder_attention|"}]
    assert [merger.asks for merger in MERGERS] == [set()] * 3
    assert AimMerge().asks == set()
    assert AimMerge(metric="keys").asks == {"keys"}


@pytest.mark.parametrize("method", [ToMe(), MCTF(stage="projector")], **by_name)
def test_without_a_default_a_budget_is_needed(method):
    with pytest.raises(BudgetError, match=f"{method.name} needs a budget"):
        method.keep_count(Grid(1, 4, 4), None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ToMe(stage="decoder"), "stage must be one of 'encoder', 'projector'"),
        (lambda: PiToMe(rho=0.4), "rho must be at least 0.5 and below 1, got 0.4"),
        (lambda: PiToMe(rho=1.0), "rho must be at least 0.5 and below 1, got 1.0"),
        (lambda: PiToMe(margin=1.1), "margin must be from 0 to 1, got 1.1"),
        (lambda: PiToMe(means="max"), "means must be one of"),
        (lambda: MCTF(tau_size=0.0), "tau_size must be 1e-06 or more, got 0.0"),
        (lambda: MCTF(floor=0), "floor must be above 0, got 0"),
        (lambda: AimMerge(ratio=0.0), "ratio must be above 0 and at most 1, got 0.0"),
        (lambda: AimMerge(metric="values"), "metric must be one of"),
    ],
)
def test_options_out_of_range_are_one_clear_line(make, words):
    with pytest.raises(VLMCompressError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
