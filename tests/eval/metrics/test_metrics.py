"""Metrics against hand-computed examples and against slow, independent ways to compute them."""

import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest

from vlmcompress.errors import UnknownNameError, VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.metrics.metrics import METRICS, f1, normalize
from vlmcompress.eval.metrics.vqa import normalize as normalize_vqa


def score(metric, answer, *targets, choices=(), **options):
    return METRICS.get(metric)(**options).score(answer, targets, choices)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Red", "red"),
        ("  the\tRed\n circle. ", "red circle"),
        ("“An apple”!", "apple"),
        ("(yes)", "yes"),
        ("a", "a"),
        ("The.", "the"),
        ("vitamin a", "vitamin a"),
        ("there", "there"),
        ("left of the star", "left of the star"),
        (".5", ".5"),
        ("-5", "-5"),
        ("$5", "$5"),
        ("5%", "5%"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_exact_normal_form(text, normal):
    assert normalize(text) == normal


def test_exact_takes_any_target_and_no_part_of_one():
    assert score("exact", "The Red.", "blue", "red") == 1
    assert score("exact", "red circle", "red") == 0
    assert score("exact", "", "red") == 0


COLORS = ("red", "dark blue", "green")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        (" b.", True),
        ("(B)", True),
        ("B:", True),
        ("B. dark blue", True),
        ("B) whatever", True),
        ("(b). dark blue", True),
        ("Dark Blue.", True),
        ("the answer is B", True),
        ("Answer: (B) because", True),
        ("B. red", True),
        ("**B**", True),
        ("**B.** dark blue", True),
        ("Answer: **B**", True),
        ("**Answer:** B", True),
        ("Option B", True),
        ("option B.", True),
        ("Option B: dark blue", True),
        ("The correct option is B.", True),
        ("The answer is option B", True),
        (r"\boxed{B}", True),
        (r"A is tempting, but $\boxed{\text{B}}$", True),
        ("<answer>B</answer>", True),
        ("Let me see. A ?\n<answer> (B) </answer>", True),
        ("<answer>dark blue</answer>", True),
        ("**Dark blue**", True),
        ("B - green", True),
        ("B \u2013 dark blue", True),
        ("B\n\nExplanation: A is not blue.", True),
        ("answer: b", True),
        ("**A**", False),
        ("Option A", False),
        ("Option B is wrong", False),
        ("option better", False),
        ("A or B", False),
        ("B or A", False),
        ("B, A", False),
        ("B. A", False),
        ("Answer: B or A", False),
        ("The answer is A. No, the answer is B", False),
        (r"\boxed{A}", False),
        (r"\boxed{A} \boxed{B}", False),
        ("<answer>A</answer><answer>B</answer>", False),
        ("The answer is blue", False),
        ("B-movies are dark", False),
        ("Better\n\nB", False),
        ("A", False),
        ("C. dark blue", False),
        ("red", False),
        ("B dark blue", False),
        ("it is dark blue", False),
        ("Z", False),
        ("", False),
        ("but", False),
    ],
)
def test_choice_reads_letters_and_texts(answer, right):
    assert score("choice", answer, "B", choices=COLORS) == right
    assert score("choice", answer, "dark blue", choices=COLORS) == right


def test_an_article_behind_the_answer_is_no_letter():
    """The word "a" is not the first choice."""
    assert score("choice", "the answer is a red circle", "A", choices=COLORS) == 0
    assert score("choice", "the answer is a.", "A", choices=COLORS) == 1


def test_choice_that_is_a_letter_goes_by_its_text():
    assert score("choice", "x", "x", choices=("y", "x")) == 1
    assert score("choice", "B", "x", choices=("y", "x")) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "yes"),
        ("no, yes", "no"),
        ("I think yes, not no", "yes"),
        ("Nothing known", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_yes_no_takes_the_first_word(answer, said):
    assert score("yes_no", answer, "yes") == (said == "yes")
    assert score("yes_no", answer, "No") == (said == "no")


def test_f1_by_hand():
    targets = ["yes", "yes", "yes", "no", "no", "no", "no"]
    answers = ["Yes", "yes, it is", "no", "yes", "no", "perhaps", "No."]
    assert f1(answers, targets) == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "yes_share": pytest.approx(3 / 7),
        "accuracy": pytest.approx(4 / 7),
    }


def test_f1_is_the_harmonic_mean_and_zero_where_nothing_is_divided():
    rng = np.random.default_rng(0)
    for _ in range(50):
        answers = rng.choice(["yes", "no", "dog"], 9).tolist()
        targets = rng.choice(["yes", "no"], 9).tolist()
        found = f1(answers, targets)
        pairs = list(zip(answers, targets, strict=True))
        precision = [t == "yes" for a, t in pairs if a == "yes"]
        recall = [a == "yes" for a, t in pairs if t == "yes"]
        assert found["precision"] == pytest.approx(np.mean(precision or [0]))
        assert found["recall"] == pytest.approx(np.mean(recall or [0]))
        both = found["precision"] + found["recall"]
        harmonic = 2 * found["precision"] * found["recall"] / both if both else 0
        assert found["f1"] == pytest.approx(harmonic)
        assert found["yes_share"] == pytest.approx(answers.count("yes") / 9)
        assert found["accuracy"] == pytest.approx(np.mean([a == t for a, t in pairs]))
    assert f1(["no"], ["no"])["f1"] == 0
    for wrong in (([], []), (["yes"], ["yes", "no"])):
        with pytest.raises(VLMCompressError, match="as many answers as targets"):
            f1(*wrong)


@pytest.mark.parametrize(
    ("agree", "points"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_vqa_of_ten_people(agree, points):
    targets = ["two"] * agree + [f"other{n}" for n in range(10 - agree)]
    assert score("vqa", "2", *targets) == pytest.approx(points)


def test_vqa_is_the_mean_over_all_subsets_without_one():
    rng = np.random.default_rng(1)
    for _ in range(100):
        people = rng.choice(["red", "green", "blue"], int(rng.integers(4, 12))).tolist()
        answer = str(rng.choice(["red", "green", "pink"]))
        subsets = list(itertools.combinations(people, len(people) - 1))
        slow = [min(Fraction(subset.count(answer), 3), 1) for subset in subsets]
        assert score("vqa", answer, *people) == pytest.approx(float(sum(slow) / len(slow)))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat.", "cat"),
        ("a man and an apple", "man and apple"),
        ("three", "3"),
        ("None", "0"),
        ("ten people", "10 people"),
        ("eleven", "eleven"),
        ("100,978", "100978"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("3.5", "3.5"),
        (".5 liter.", ".5 liter"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("dont", "don't"),
        ("cant", "can't"),
        ("hes", "he's"),
        ("its", "its"),
        ("T-shirt", "t shirt"),
        ("yes!\nno?", "yes no"),
        ("5%", "5%"),
        ("$5 & up", "$5 & up"),
    ],
)
def test_vqa_normal_form(text, normal):
    assert normalize_vqa(text) == normal


def test_vqa_normalizes_both_sides():
    assert score("vqa", "DONT, 3!", *["don't three"] * 4) == 1


def check(metric, targets, choices=()):
    METRICS.get(metric)().check(targets, choices)


@pytest.mark.parametrize(
    ("metric", "targets", "choices", "message"),
    [
        ("choice", ["D"], COLORS, "'D' must be the letter or the text"),
        ("choice", ["A"], (), "2 to 26 different choices"),
        ("choice", ["A"], ("red",), "2 to 26 different choices"),
        ("choice", ["A"], ("red", "Red."), "2 to 26 different choices"),
        ("choice", ["A"], ("b", "c"), "'b' is the letter of another choice"),
        ("yes_no", ["yes", "maybe"], (), "'maybe' must be yes or no"),
        ("iou", ["[1, 2, 3]"], (), "must be a box"),
        ("iou", ["[1, 2, 1, 5]"], (), "must be a box"),
        ("vqa", ["red"] * 3, (), "4 or more people, one of each, got 3"),
    ],
)
def test_data_that_no_answer_fits_is_refused(metric, targets, choices, message):
    with pytest.raises(VLMCompressError, match=message):
        check(metric, targets, choices)


def test_good_data_is_accepted():
    check("choice", ["A"], COLORS)
    check("choice", ["green"], COLORS)
    check("choice", ["x"], ("x", "y"))
    check("choice", ["A"], ("a", "b"))
    check("vqa", ["red", "blue", "green", "pink"])
    check("iou", ["[1, 2, 3, 4]"])
    check("yes_no", ["Yes", "no"])
    for metric in ("exact", "anls", "relaxed"):
        check(metric, ["7", "any text"])


@pytest.mark.parametrize("option", [0, -0.1, 1.1, "high", True, math.nan])
@pytest.mark.parametrize(
    ("metric", "name"), [("anls", "threshold"), ("iou", "threshold"), ("relaxed", "tolerance")]
)
def test_options_are_checked(metric, name, option):
    with pytest.raises(VLMCompressError, match=f"{name} must be a number above 0 and at most 1"):
        METRICS.get(metric)(**{name: option})


def test_unknown_metric_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown metric 'relaxd': did you mean 'relaxed'"):
        METRICS.get("relaxd")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(
        VLMCompressError, match=r"rapidfuzz is missing: pip install 'vlmcompress\[eval\]'"
    ):
        score("anls", "a", "b")


def test_faults_of_this_package_are_not_taken_for_missing_ones():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), needs_eval():
        import vlmcompress.no_such_module  # noqa: F401
