"""Schedules of decoder methods against every other of their family."""

import math

import pytest

from vlmcompress.errors import BudgetError
from vlmcompress.methods.aim_prune import AimPrune
from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.methods.corematching import CoreMatching
from vlmcompress.methods.dart import DART
from vlmcompress.methods.feather import Feather
from vlmcompress.methods.todre_exit import TodreExit
from vlmcompress.methods.var import VAR

ONE_CUT = [CoreMatching(), DART(), VAR(dims=(0,)), CoreMatching(k=5), DART(k=1), VAR((0,), k=3)]


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("method", ONE_CUT, ids=lambda m: f"{m.name} k={m.k}")
def test_one_cut_is_the_nearest_that_whole_numbers_allow(method, tokens):
    means = [mean_tokens(12, tokens, {method.k: keep}) for keep in range(tokens + 1)]
    for budget in (step / 4 for step in range(4 * tokens + 1)):
        if budget < min(means):
            with pytest.raises(BudgetError, match=f"{method.name} with its first cut .* k=1|\\+"):
                method.schedule(12, tokens, budget)
            continue
        off = abs(mean_tokens(12, tokens, method.schedule(12, tokens, budget)) - budget)
        assert off == pytest.approx(min(abs(mean - budget) for mean in means))


def lines(tokens, last, layers=12):
    """Every schedule of AIM with this l1: the fall on each side of each of its steps."""
    steps = {(1 - m / tokens) / j for m in range(tokens + 1) for j in range(1, layers - last)}
    for fall in {min(1, max(0, step + d)) for step in steps for d in (-1e-6, 0, 1e-6)}:
        yield {last + j: int(tokens * max(0, 1 - fall * j) + 1e-9) for j in range(1, layers - last)}


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("last", [0, 5, 10])
def test_no_fall_of_aim_is_nearer_to_the_budget(last, tokens):
    means = [mean_tokens(12, tokens, line) for line in lines(tokens, last)]
    for budget in (step / 4 for step in range(4 * tokens + 1)):
        if budget < min(means):
            with pytest.raises(BudgetError, match="aim-prune with its first cut"):
                AimPrune(l1=last).schedule(12, tokens, budget)
            continue
        schedule = AimPrune(l1=last).schedule(12, tokens, budget)
        off = abs(mean_tokens(12, tokens, schedule) - budget)
        assert off <= min(abs(mean - budget) for mean in means) + 1e-9


def by_share(tokens, stride):
    """Every schedule of FEATHER that some share makes, on a fine grid of shares."""
    points = min(tokens, math.ceil(math.sqrt(tokens) / stride) ** 2)
    for step in range(-4000, 4001):
        share = step / 4000
        first = min(tokens, max(0, (tokens * step) // 4000 + points))
        yield {3: first, 6: min(first, int(first * max(0, share) ** 2 + 1e-9))}


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("stride", [1, 3])
def test_no_share_of_feather_is_nearer_to_the_budget(stride, tokens):
    means = [mean_tokens(12, tokens, each) for each in by_share(tokens, stride)]
    for budget in (step / 4 for step in range(4 * tokens + 1)):
        if budget < tokens / 4:
            with pytest.raises(BudgetError, match="feather with its first cut before layer 3"):
                Feather(stride=stride).schedule(12, tokens, budget)
            continue
        schedule = Feather(stride=stride).schedule(12, tokens, budget)
        off = abs(mean_tokens(12, tokens, schedule) - budget)
        assert off <= min(abs(mean - budget) for mean in means) + 1e-9
        assert off <= 0.5


@pytest.mark.parametrize("method", [Feather(), AimPrune(), *ONE_CUT[:3]], ids=lambda m: m.name)
@pytest.mark.parametrize("tokens", [0, 1, 144])
def test_keeping_all_is_an_empty_schedule(method, tokens):
    assert method.schedule(12, tokens, tokens) == {}
    assert method.schedule(12, tokens, tokens + 3) == {}


@pytest.mark.parametrize(
    ("method", "layers", "message"),
    [
        (Feather(), 2, "feather must cut before one of the layers 1 to 1 .* got 1, 2"),
        (Feather(layers=(4, 16)), 16, "layers 1 to 15 .* got 4, 16"),
        (AimPrune(), 1, "aim-prune needs a decoder of at least 2 layers, got 1"),
        (AimPrune(l1=11), 12, "layers 1 to 11 .* got 12"),
        (TodreExit(layer=12), 12, "todre-exit must cut before one of the layers 1 to 11 "),
        (TodreExit(), 1, "todre-exit needs a decoder of at least 2 layers"),
        (CoreMatching(k=12), 12, "corematching must cut before one of the layers 1 to 11 "),
        (VAR((0,), k=12), 12, "var must cut before"),
        (DART(k=12), 12, "dart must cut before"),
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [None, 50, 100])
def test_cuts_outside_the_decoder(method, layers, message, budget):
    with pytest.raises(BudgetError, match=message):
        method.schedule(layers, 100, budget)


def test_two_layers_are_enough_for_all_but_two_cuts():
    for method in (AimPrune(), TodreExit(), DART(k=1), CoreMatching(k=1), VAR((0,), k=1)):
        counts = tokens_per_layer(2, 10, method.schedule(2, 10, None))
        assert counts[0] == 10
        assert counts[1] <= 10
