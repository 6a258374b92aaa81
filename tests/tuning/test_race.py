"""Who stays and who wins, by scores of which everything is known."""

import numpy as np
import pytest

from vlmcompress.tuning.race import LEAST, Measured, front, leaving, ranked, taken, worse


def measured(wrong, n=100, kl=0.0, speed=1.0, first=0):
    """So many answers of n are not those of the whole model; so many from the first."""
    agrees = np.ones(n)
    agrees[first : first + wrong] = 0
    return Measured(np.where(agrees == 1, kl, 5.0), agrees, [speed] * 3)


def test_a_score_by_hand():
    one = Measured(np.array([0.0, np.log(4)]), np.array([1.0, 0.0]), [])
    assert one.scores.tolist() == pytest.approx([1, 0.125])
    assert one.fast == 0


def test_who_is_clearly_worse_leaves():
    field = {"good": measured(2), "near": measured(3), "bad": measured(40)}
    left = leaving(field, "accuracy")
    assert list(left) == ["bad"]
    assert left["bad"].startswith("worse than good, p ")
    assert not leaving({"good": field["good"], "near": field["near"]}, "accuracy")


@pytest.mark.parametrize(("n", "leaves"), [(4, False), (40, True)])
def test_few_questions_show_little(n, leaves):
    field = {"good": measured(0, n), "bad": measured(n // 2, n)}
    assert ("bad" in leaving(field, "accuracy")) is leaves


def test_the_more_are_compared_the_more_it_takes():
    pair = {"good": measured(0), "doubtful": measured(6)}
    assert list(worse(pair, "good")) == ["doubtful"]
    many = {**pair, **{f"same{i}": measured(0) for i in range(60)}}
    assert not worse(many, "good")


def test_kl_decides_where_all_agree():
    field = {"far": measured(0, kl=0.2), "near": measured(0, kl=0.1)}
    assert ranked(field) == ["near", "far"]
    assert list(leaving(field, "accuracy")) == ["far"]


def test_one_answer_of_enormous_kl_does_not_decide():
    kl = np.full(100, 0.1)
    kl[0] = 1000.0
    field = {"once": Measured(kl, np.ones(100), []), "always": measured(0, kl=0.5)}
    assert field["once"].kl.mean() > field["always"].kl.mean()
    assert ranked(field) == ["once", "always"]


def test_equal_ones_stay_in_their_order():
    names = ["c", "a", "b"]
    field = {name: measured(1) for name in names}
    assert ranked(field) == names
    assert taken(field, "accuracy") == "c"


def test_half_of_the_field_stays_where_nothing_tells_them_apart():
    field = {f"m{i:02}": measured(1, first=i) for i in range(20)}
    left = leaving(field, "accuracy")
    assert list(left) == [f"m{i:02}" for i in range(10, 20)]
    assert set(left.values()) == {"behind half of the field, not significantly worse"}
    few = {name: field[name] for name in list(field)[:LEAST]}
    assert not leaving(few, "accuracy")
    assert not leaving(field, "time"), "the fastest may be among them"


def test_one_method_under_two_names_takes_one_place():
    field = {f"m{i}": measured(1, first=i) for i in range(LEAST - 2)}
    same = {"m0": field.pop("m0"), "again": measured(1), **field, "once more": measured(1)}
    left = dict.fromkeys(["again", "once more"], "no other than m0 on any question")
    assert leaving(same, "accuracy") == left
    assert not leaving(same, "time"), "the fastest may be among them"
    alike = {"again": measured(1, first=50), "once more": measured(1, first=60)}
    assert not leaving(same | alike, "accuracy")


def test_time_takes_the_fastest_that_is_not_worse():
    field = {
        "best": measured(0, speed=1.0),
        "fast": measured(1, speed=2.0),
        "faster": measured(2, speed=3.0),
        "poor": measured(50, speed=9.0),
    }
    assert taken(field, "accuracy") == "best"
    assert taken(field, "time") == "faster"
    assert taken(field, "pareto") == "best"


def test_the_front_by_brute_force():
    rng = np.random.default_rng(0)
    field = {
        f"m{i}": measured(int(rng.integers(60)), speed=float(rng.integers(1, 9))) for i in range(30)
    }
    order = ranked(field)

    def beaten(spec):
        return any(field[other].fast >= field[spec].fast for other in order[: order.index(spec)])

    assert front(field) == [spec for spec in order if not beaten(spec)]
    assert 1 < len(front(field)) < 30


def test_pareto_keeps_who_is_faster():
    field = {
        "best": measured(0, speed=1.0),
        "fast": measured(40, speed=2.0),
        "beaten": measured(80, speed=1.5),
        "slow": measured(40, speed=0.5),
    }
    left = leaving(field, "pareto")
    assert set(left) == {"beaten", "slow"}
    assert left["slow"].startswith("worse than best, which is no slower")


def test_one_question():
    field = {"right": measured(0, 1), "wrong": measured(1, 1)}
    assert not leaving(field, "accuracy")
    assert taken(field, "accuracy") == "right"
