"""What is not what it claims to be is warned of; what is only weak is not."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from vlmcompress.eval.results.sanity import Observed, _order, warnings

ANSWERS = {
    "color": ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"],
    "count": ["one", "two", "three", "four", "five"],
    "presence": ["yes", "no"],
    "place": ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom"],
}
SHUFFLED = "look shuffled between samples"
UNRELATED = "unrelated to their samples"


def honest(sees=0.9, n=500, batch=40, seed=0, kinds=tuple(ANSWERS), full_sees=0.95):
    """Samples of which a method sees a share, and guesses the others."""
    rng = np.random.default_rng(seed)
    kind = [kinds[i % len(kinds)] for i in range(n)]

    def guess():
        return [
            ANSWERS[k][int(x * len(ANSWERS[k]))] for k, x in zip(kind, rng.random(n), strict=True)
        ]

    def answered(of, share):
        seen = rng.random(n) < share
        return [a if s else b for a, b, s in zip(of, guess(), seen, strict=True)]

    right = guess()

    full = answered(right, full_sees)
    answers = answered(full, sees)
    return scored(
        right,
        Observed(
            case="divprune at 25%",
            answers=answers,
            full=full,
            scores=np.zeros(n),
            full_scores=np.zeros(n),
            kinds=kind,
            batches=[i // batch for i in range(n)],
            before=[64] * n,
            mean=[16.0] * n,
            budget="25%",
        ),
    ), right


def scored(right, seen):
    def marks(answers):
        return np.array([float(a == b) for a, b in zip(answers, right, strict=True)])

    return replace(seen, scores=marks(seen.answers), full_scores=marks(seen.full))


def reordered(order, **of):
    """An honest method whose answers were put in another order."""
    seen, right = honest(**of)
    order = order(seen, np.random.default_rng(of.get("seed", 0) + 1000))
    return scored(right, replace(seen, answers=[seen.answers[i] for i in order]))


def by_chance(seen, rng):
    return rng.permutation(len(seen.answers))


def within_batches(seen, rng):
    keys = np.array(seen.batches) + rng.random(len(seen.batches))
    return np.argsort(keys)


def within_kinds(seen, rng):
    order = np.arange(len(seen.answers))
    for kind in set(seen.kinds):
        members = np.flatnonzero(np.array(seen.kinds) == kind)
        order[members] = rng.permutation(members)
    return order


def by_one(seen, rng):
    return np.roll(np.arange(len(seen.answers)), 1)


ORDERS = [by_chance, within_batches, within_kinds, by_one]


def about_order(found):
    return [sentence for sentence in found if SHUFFLED in sentence or UNRELATED in sentence]


class TestNothingToWarnOf:
    @pytest.mark.parametrize("sees", [0.3, 0.6, 0.99])
    def test_an_honest_method(self, sees):
        assert warnings(honest(sees)[0]) == []

    def test_a_weak_method_that_is_right_in_two_of_five(self):
        seen, _ = honest(0.25)
        assert 0.35 < seen.scores.mean() < 0.5
        assert warnings(seen) == []

    def test_too_few_samples_to_tell(self):
        for seed in range(20):
            assert warnings(honest(0.25, n=16, seed=seed)[0]) == []

    def test_a_budget_that_keeps_everything(self):
        seen, _ = honest()
        whole = replace(seen, answers=seen.full, mean=[64.0] * 500)
        for budget in ("100%", "64", "200", "99.5%", "200 ms", "64 per frame", "1 flops"):
            assert warnings(replace(whole, budget=budget)) == []

    def test_samples_without_pictures(self):
        seen, _ = honest()
        assert warnings(replace(seen, before=[0] * 500, mean=[0.0] * 500)) == []

    def test_a_good_method_beside_a_blind_full(self):
        seen, right = honest(full_sees=0.0)
        assert warnings(scored(right, replace(seen, answers=right))) == []

    def test_boxes_that_are_never_quite_the_same(self):
        rng = np.random.default_rng(0)
        boxes = rng.integers(10, 90, (200, 4))
        seen, _ = honest(n=200)
        near = [str(list(map(int, box))) for box in boxes + rng.integers(-1, 2, boxes.shape)]
        full = [str(list(map(int, box))) for box in boxes]
        assert sum(a == b for a, b in zip(near, full, strict=True)) < 10
        kinds = ["box"] * 200
        right = replace(seen, answers=near, full=full, kinds=kinds, full_scores=np.ones(200))
        assert warnings(right) == []
        rolled = warnings(replace(right, answers=near[1:] + near[:1]))
        assert len(about_order(rolled)) == 1


class TestDidNotEngage:
    def test_no_token_was_removed(self):
        seen, _ = honest()
        idle = replace(seen, answers=seen.full, scores=seen.full_scores, mean=[64.0] * 500)
        (found,) = warnings(idle)
        assert found == (
            "divprune at 25% did not engage: it kept all 64 visual tokens of a sample, and "
            "not one of 500 answers differs from full's"
        )

    @pytest.mark.parametrize("budget", [None, "16", "25%", "0.4 flops", "25% per frame"])
    def test_whatever_the_budget(self, budget):
        seen, _ = honest()
        (found,) = warnings(replace(seen, mean=[64.0] * 500, budget=budget))
        assert "did not engage" in found
        assert (
            f"{sum(np.array(seen.answers) != np.array(seen.full))} of 500 answers differ" in found
        )

    def test_a_single_sample_tells(self):
        one = Observed("a", ["x"], ["x"], np.ones(1), np.ones(1), ["k"], [0], [64], [64.0], "50%")
        assert "did not engage" in warnings(one)[0]

    def test_one_sample_that_lost_tokens_is_enough(self):
        seen, _ = honest()
        found = warnings(replace(seen, mean=[64.0] * 499 + [16.0], budget=None))
        assert found == []

    def test_tokens_are_gone_and_no_answer_differs(self):
        seen, _ = honest()
        (found,) = warnings(replace(seen, answers=seen.full))
        assert "not one of 500 answers" in found
        assert "75% of the visual tokens are said to be gone" in found
        assert warnings(replace(seen, answers=[*seen.full[:-1], "other"])) == []

    def test_a_few_unchanged_answers_are_no_reason(self):
        seen, _ = honest(n=99)
        assert warnings(replace(seen, answers=seen.full)) == []


class TestDroppedEverything:
    def test_all(self):
        (found,) = warnings(replace(honest(0.0)[0], mean=[0.0] * 500))
        assert "dropped everything: 500 of 500" in found

    def test_nearly_all(self):
        (found,) = warnings(replace(honest(0.0)[0], mean=[16.0] * 5 + [0.0] * 495))
        assert "dropped everything: 495 of 500" in found

    def test_some(self):
        seen, _ = honest()
        found = warnings(replace(seen, mean=[0.0] * 100 + [20.0] * 400))
        assert found == ["divprune at 25% kept no visual token of 100 of 500 samples"]


class TestOffBudget:
    @pytest.mark.parametrize(
        ("budget", "before", "mean", "off"),
        [
            ("25%", 64, 16.9, False),
            ("25%", 64, 17.1, True),
            ("25%", 64, 14.9, True),
            ("16", 64, 17.1, True),
            ("50%", 1000, 524.0, False),
            ("50%", 1000, 526.0, True),
            ("100", 64, 40.0, True),
            ("1%", 64, 1.0, False),
            ("0.4 flops", 64, 60.0, False),
            ("120 ms", 64, 2.0, False),
            ("4 per frame", 64, 32.0, False),
            (None, 64, 3.0, False),
        ],
    )
    def test_more_than_a_token_and_a_twentieth(self, budget, before, mean, off):
        seen, _ = honest()
        found = warnings(replace(seen, before=[before] * 500, mean=[mean] * 500, budget=budget))
        assert ["far off its budget" in sentence for sentence in found] == [True] * off

    def test_what_counts_is_the_mean_over_the_samples(self):
        seen, _ = honest()
        assert warnings(replace(seen, mean=[8.0, 24.0] * 250)) == []

    def test_a_count_is_for_each_image(self):
        seen, _ = honest()
        two = replace(seen, before=[128] * 500, mean=[32.0] * 500, budget="16", images=[2] * 500)
        assert warnings(two) == []
        assert "is 16.0" in warnings(replace(two, images=None))[0]


def test_moments_are_those_of_all_orders():
    likeness = np.random.default_rng(0).random((5, 5))
    sums = [likeness[np.arange(5), order].sum() for order in itertools.permutations(range(5))]
    surplus, variance = _order(likeness)
    assert surplus == pytest.approx(np.trace(likeness) - np.mean(sums))
    assert variance == pytest.approx(np.var(sums))


class TestShuffled:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("sees", [0.7, 0.95])
    @pytest.mark.parametrize("batch", [8, 40])
    def test_every_order_but_the_right_one_is_caught(self, order, sees, batch):
        (found,) = warnings(reordered(order, sees=sees, batch=batch, seed=1))
        assert SHUFFLED in found

    def test_says_where(self):
        assert "between samples within their batches:" in warnings(reordered(within_batches))[0]
        assert "between samples:" in warnings(reordered(by_chance, batch=8))[0]

    def test_pairs_that_are_exchanged_are_caught(self):
        def swapped(seen, rng):
            return np.arange(500).reshape(-1, 2)[:, ::-1].ravel()

        assert "within their batches" in warnings(reordered(swapped, batch=2))[0]

    def test_sixty_samples_of_several_kinds_are_enough(self):
        for order in (by_chance, by_one):
            assert SHUFFLED in warnings(reordered(order, n=60, batch=1, seed=2))[0]

    def test_nothing_removed_and_shuffled_gives_both_warnings(self):
        seen = reordered(by_chance)
        first, second = warnings(replace(seen, mean=[64.0] * 500))
        assert "did not engage" in first
        assert SHUFFLED in second

    def test_guesses_are_unrelated(self):
        seen, right = honest(n=500)
        one_each = {kind: options[0] for kind, options in ANSWERS.items()}
        seen = scored(right, replace(seen, answers=[one_each[kind] for kind in seen.kinds]))
        (found,) = warnings(seen)
        assert UNRELATED in found
        assert f"full {seen.full_scores.mean():.2f}" in found

    def test_too_many_other_answers_are_not_called_an_order(self):
        seen = reordered(by_chance)
        half = [answer if i % 2 else "unknown" for i, answer in enumerate(seen.answers)]
        (found,) = warnings(replace(seen, answers=half))
        assert UNRELATED in found

    def test_full_that_sees_nothing_itself_says_nothing(self):
        seen, right = honest()
        constant = replace(seen, full=["yes"] * 500, answers=["yes"] * 490 + ["no"] * 10)
        assert warnings(scored(right, constant)) == []

    @pytest.mark.parametrize("kinds", [("presence",), tuple(ANSWERS)])
    @pytest.mark.parametrize("n", [60, 120, 500])
    @pytest.mark.parametrize("sees", [0.25, 0.5, 0.9])
    def test_false_alarms_are_rare(self, kinds, n, sees):
        """A method that sees a quarter is protected with 99 %, others better."""
        sets = 25
        alarms = sum(
            bool(about_order(warnings(honest(sees, n=n, batch=8, seed=seed, kinds=kinds)[0])))
            for seed in range(sets)
        )
        assert alarms <= (2 if sees < 0.5 else 0)

    @pytest.mark.parametrize("order", ORDERS)
    def test_shuffles_are_seldom_missed(self, order):
        sets = 25
        caught = [about_order(warnings(reordered(order, n=250, seed=s))) for s in range(sets)]
        assert sum(map(bool, caught)) >= sets - 2
