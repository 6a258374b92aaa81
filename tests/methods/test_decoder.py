"""Methods at the decoder stage: schedules against search, scores on a fake layer."""

from dataclasses import dataclass, field

import pytest
import torch

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.pyramiddrop import PyramidDrop
from vlmcompress.ops.select import top_k
from vlmcompress.tokens import Grid

QUARTERS = PyramidDrop()


def per_layer(layers, tokens, schedule):
    counts = []
    for layer in range(layers):
        tokens = schedule.get(layer, tokens)
        counts.append(tokens)
    return counts


@dataclass
class FakeView:
    """A layer whose attention is given; remembers what was asked of it."""

    weights: torch.Tensor
    visual: torch.Tensor
    layer: int = 2
    grid: Grid = field(default_factory=lambda: Grid(1, 2, 2))
    text: torch.Tensor = field(default_factory=lambda: torch.tensor([5]))
    index: torch.Tensor = field(default_factory=lambda: torch.arange(4))
    asked: list = field(default_factory=list)

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked.append((rows, keys, rope, of))
        return self.weights


@pytest.mark.parametrize(
    ("k", "budget", "keep"),
    [(2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 128, 82), (3, 64, 11)],
)
def test_fastv_counts_of_llava(k, budget, keep):
    assert FastV(k=k).schedule(32, 576, budget) == {k: keep}


@pytest.mark.parametrize(
    ("method", "stages", "mean"),
    [
        (FastV(), [(576, 2), (288, 30)], 306),
        (FastV(ratio=0.75), [(576, 2), (144, 30)], 171),
        (FastV(k=3), [(576, 3), (288, 29)], 315),
        (FastV(k=3, ratio=0.75), [(576, 3), (144, 29)], 184.5),
        (QUARTERS, [(576, 8), (288, 8), (144, 8), (72, 8)], 270),
        (PyramidDrop(lam=0.4), [(576, 8), (230, 8), (92, 8), (36, 8)], 233.5),
        (PyramidDrop(layers=(4, 20)), [(576, 4), (288, 16), (144, 12)], 270),
    ],
    ids=str,
)
def test_default_schedules_of_llava(method, stages, mean):
    schedule = method.schedule(32, 576, None)
    assert per_layer(32, 576, schedule) == [n for n, times in stages for _ in range(times)]
    assert mean_tokens(32, 576, schedule) == mean


@pytest.mark.parametrize(("budget", "lam"), [(270, 0.5), (192, 0.253), (160, 0.1), (144, 0)])
def test_pyramiddrop_solves_lambda_for_the_budget(budget, lam):
    schedule = QUARTERS.schedule(32, 576, budget)
    assert abs(mean_tokens(32, 576, schedule) - budget) <= 0.5
    assert schedule[8] / 576 == pytest.approx(lam, abs=0.0015)


def test_pyramiddrop_hand_example():
    schedule = QUARTERS.schedule(32, 8, None)
    assert schedule == {8: 4, 16: 2, 24: 1}
    prefix, text = 2, 3
    lengths = [prefix + n + text for n in per_layer(32, 8, schedule)]
    assert [lengths[layer] for layer in (0, 8, 16, 24)] == [13, 9, 7, 6]


@pytest.mark.parametrize(
    ("layers", "cuts"),
    [(32, [8, 16, 24]), (28, [7, 14, 21]), (40, [10, 20, 30]), (6, [1, 3, 4]), (2, [1])],
)
def test_pyramiddrop_cuts_at_the_quarters(layers, cuts):
    assert list(QUARTERS.schedule(layers, 1000, None)) == cuts


def test_pyramiddrop_counts_are_truncated_but_not_by_floating_point():
    # 0.7 ** 2 * 100 is 48.99999999999999.
    assert PyramidDrop(lam=0.7).schedule(32, 100, None) == {8: 70, 16: 49, 24: 34}


def one_cut(k, layers, tokens):
    return [{k: keep} for keep in range(tokens + 1)]


def by_lambda(cuts, layers, tokens):
    """Every schedule that some lambda makes: one on each step of the staircase, and its ends."""
    stages = range(1, len(cuts) + 1)
    steps = {(m / tokens) ** (1 / j) for j in stages for m in range(tokens + 1)}
    lams = sorted({lam + d for lam in steps for d in (-1e-7, 1e-7) if 0 <= lam + d <= 1} | {0, 1})
    return [{cut: int(tokens * lam**j) for j, cut in enumerate(cuts, 1)} for lam in lams]


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize(
    ("method", "possible"),
    [
        (FastV(k=1), lambda layers, tokens: one_cut(1, layers, tokens)),
        (FastV(k=4), lambda layers, tokens: one_cut(4, layers, tokens)),
        (QUARTERS, lambda layers, tokens: by_lambda((3, 6, 9), layers, tokens)),
        (
            PyramidDrop(layers=(1, 11)),
            lambda layers, tokens: by_lambda((1, 11), layers, tokens),
        ),
    ],
    ids=["fastv-k1", "fastv-k4", "pyramiddrop", "pyramiddrop-1-11"],
)
def test_no_other_schedule_is_nearer_to_the_budget(method, possible, tokens):
    means = [mean_tokens(12, tokens, schedule) for schedule in possible(12, tokens)]
    for step in range(4 * tokens + 1):
        budget = step / 4
        if budget < min(means):
            with pytest.raises(BudgetError):
                method.schedule(12, tokens, budget)
            continue
        schedule = method.schedule(12, tokens, budget)
        off = abs(mean_tokens(12, tokens, schedule) - budget)
        assert off <= min(abs(mean - budget) for mean in means) + 1e-9
        assert off <= 0.5
        counts = per_layer(12, tokens, schedule)
        assert counts == sorted(counts, reverse=True)
        assert list(schedule) == sorted(schedule)
        assert all(0 <= count <= tokens for count in counts)


@pytest.mark.parametrize("tokens", [1, 7, 20, 144])
def test_one_lambda_explains_all_counts_of_pyramiddrop(tokens):
    for step in range(tokens, 4 * tokens):
        counts = per_layer(12, tokens, QUARTERS.schedule(12, tokens, step / 4))
        stages = list(enumerate((counts[3], counts[6], counts[9]), start=1))
        lowest = max((max(0, n - 1e-6) / tokens) ** (1 / j) for j, n in stages)
        highest = min(((n + 1) / tokens) ** (1 / j) for j, n in stages)
        assert lowest < highest


@pytest.mark.parametrize("method", [FastV(), FastV(k=5), QUARTERS], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 144])
def test_keeping_all_is_an_empty_schedule(method, tokens):
    assert method.schedule(6, tokens, tokens) == {}
    assert method.schedule(6, tokens, tokens + 10) == {}


def test_nothing_left_after_a_cut_is_allowed():
    assert FastV().schedule(32, 576, 36) == {2: 0}
    assert QUARTERS.schedule(32, 576, 144) == {8: 0}
    assert QUARTERS.schedule(32, 1, None) == {8: 0}


@pytest.mark.parametrize(
    ("method", "tokens", "budget", "message"),
    [
        (FastV(), 576, 20, r"fewer than 2\*576/32 = 36 .* got 20: cut earlier with k=1 or .*fastv"),
        (FastV(k=1), 576, 17.9, r"= 18 .* got 17.9: combine it .*\"divprune\+fastv\""),
        (
            QUARTERS,
            576,
            128,
            r"8\*576/32 = 144 .* got 128: .*layers=\(1, 16, 24\) or .*divprune\+py",
        ),
        (FastV(), 100, 6.2, r"2\*100/32 = 6.25 "),
        (FastV(), 576, float("nan"), "got nan"),
    ],
)
def test_budgets_out_of_reach_name_the_smallest(method, tokens, budget, message):
    with pytest.raises(BudgetError, match=message):
        method.schedule(32, tokens, budget)


def test_the_smallest_budget_in_the_message_is_accepted():
    with pytest.raises(BudgetError, match=r"= 33\.34 "):
        FastV().schedule(6, 100, 33.3)
    assert FastV().schedule(6, 100, 33.34) == {2: 0}


@pytest.mark.parametrize(
    ("method", "layers", "message"),
    [
        (FastV(k=6), 6, "fastv must cut before one of the layers 1 to 5 .* got 6"),
        (FastV(k=40), 32, "layers 1 to 31 .* got 40"),
        (FastV(k=1), 1, "fastv needs a decoder of at least 2 layers, got 1"),
        (QUARTERS, 1, "pyramiddrop needs a decoder of at least 2 layers, got 1"),
        (PyramidDrop(layers=(2, 6)), 6, "layers 1 to 5 .* got 2, 6"),
    ],
)
def test_cuts_outside_the_decoder(method, layers, message):
    for budget in (None, 50, 100):
        with pytest.raises(BudgetError, match=message):
            method.schedule(layers, 100, budget)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FastV(k=0), "k must be 1 or more, got 0"),
        (lambda: FastV(k="x"), "k must be an integer, got 'x'"),
        (lambda: FastV(k=2.0), "k must be an integer, got 2.0"),
        (lambda: FastV(ratio=1), "ratio must be at least 0 and below 1, got 1"),
        (lambda: FastV(ratio=-0.1), "ratio must be at least 0 and below 1, got -0.1"),
        (lambda: PyramidDrop(lam=0), "lam must be between 0 and 1, got 0"),
        (lambda: PyramidDrop(lam=1.0), "lam must be between 0 and 1, got 1.0"),
        (lambda: PyramidDrop(layers=()), "layers must be ascending"),
        (lambda: PyramidDrop(layers=(0, 4)), r"1 or more, .* got \(0, 4\)"),
        (lambda: PyramidDrop(layers=(4, 4)), r"must be ascending .* got \(4, 4\)"),
        (lambda: PyramidDrop(layers=(8, 4)), r"must be ascending .* got \(8, 4\)"),
        (lambda: PyramidDrop(layers=(1.5,)), "layers must be a tuple of an integer or None"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(VLMCompressError, match=message):
        make()


def test_fastv_hand_example():
    rows = [[0.1, 0.1, 0.4, 0.2, 0.1, 0.1], [0.1, 0.3, 0.1, 0.1, 0.2, 0.2]]
    view = FakeView(torch.tensor(rows)[:, None], torch.arange(1, 5))
    scores = FastV().score(view)
    torch.testing.assert_close(scores, torch.tensor([0.20, 0.25, 0.15, 0.15]))
    assert top_k(scores, 2).tolist() == [0, 1]
    assert view.asked == [("last", "all", True, "previous")]


def test_pyramiddrop_asks_the_layer_that_is_about_to_run():
    rows = [[0.5, 0.1, 0.2, 0.1, 0.1], [0.1, 0.3, 0.0, 0.4, 0.2]]
    view = FakeView(torch.tensor(rows)[:, None], torch.tensor([0, 1, 3]))
    torch.testing.assert_close(QUARTERS.score(view), torch.tensor([0.3, 0.2, 0.25]))
    assert view.asked == [("last", "all", True, "this")]


@pytest.mark.parametrize("method", [FastV(), QUARTERS], ids=lambda m: m.name)
def test_scores_follow_the_attention(method):
    weights = torch.rand(4, 1, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    visual = torch.tensor([2, 3, 6])
    scores = method.score(FakeView(weights, visual))
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, weights[:, 0, visual].mean(0))
    swapped = method.score(FakeView(weights, visual.flip(0)))
    assert torch.equal(swapped, scores.flip(0))
    assert top_k(scores, 1).item() == 2 - top_k(swapped, 1).item()
