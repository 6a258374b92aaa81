"""The accuracy table: how rows are made, and that the shipped one keeps its promises."""

import json
from pathlib import Path

import pytest

import vlmcompress
from vlmcompress.eval.accuracy_table import (
    METHODS,
    ONE_FRAME,
    RANDOM_SEEDS,
    SHARES,
    Case,
    Outcome,
    answer_all,
    cases,
    commonest_answer,
    is_right,
    summarise,
)
from vlmcompress.eval.worlds import KINDS, VERSION, Question, draw, held_out
from vlmcompress.eval.worlds_clip_questions import held_out_clips
from vlmcompress.eval.worlds_clips import CLIP_VERSION, one_frame, render_clip

EVAL = Path(vlmcompress.__file__).parent / "eval"


def make_questions():
    return [Question(kind, number % 2, f"{kind} ?", "yes") for number, kind in enumerate(KINDS * 2)]


@pytest.mark.parametrize(("tokens", "clips"), [(144, False), (36, False), (144, True)])
def test_cases_cover_methods_budgets_and_seeds(tokens, clips):
    listed = list(cases(tokens, clips))
    whole = ["full", ONE_FRAME, "text-only"] if clips else ["full", "text-only"]
    assert [case.method for case in listed if case.budget is None] == whole
    assert listed[0].method == "full"
    for method in METHODS:
        for budget in (tokens // share for share in SHARES):
            options = [c.options for c in listed if (c.method, c.budget) == (method, budget)]
            expected = [{"seed": seed} for seed in RANDOM_SEEDS] if method == "random" else [{}]
            assert options == expected


def test_an_answer_is_right_only_if_it_is_exact():
    questions = [Question("place", 0, "?", "top left")] * 4
    assert is_right(["top left", "top", "top left right", ""], questions) == [
        True,
        False,
        False,
        False,
    ]


def test_a_row_counts_by_kind_and_wording_and_against_full():
    questions = make_questions()
    answers = ["yes" if question.kind != "count" else "no" for question in questions]
    reference = [question.kind != "color" for question in questions]
    row = summarise(Case("stride", 9, {}), Outcome(answers, 9.0, 1.0), questions, reference)
    assert row["n"] == 14
    assert row["accuracy"] == pytest.approx(12 / 14, abs=1e-4)
    assert row["by_kind"] == {kind: float(kind != "count") for kind in KINDS}
    assert row["against_full"] == {"lost": 2, "won": 2}
    wrong = [question.wording for question in questions if question.kind == "count"]
    assert row["by_wording"]["0"] == pytest.approx(1 - wrong.count(0) / 7, abs=1e-4)


def test_answers_do_not_depend_on_the_batch(tiny_llava):
    model, processor = tiny_llava
    asked = [(draw(scene), question) for scene, question in held_out(14)]
    case = Case("divprune", 18, {})
    together = answer_all(model, processor, asked, case, batch=14)
    alone = answer_all(model, processor, asked, case, batch=1)
    assert together.answers == alone.answers
    assert together.kept == alone.kept == 18


def test_one_frame_is_asked_with_all_tokens_of_a_clip_that_stands_still(tiny_qwen):
    (clip, question), *_ = held_out_clips(1)
    frames = render_clip(clip)[0]
    still = answer_all(*tiny_qwen, [(one_frame(frames), question)], Case("full", None, {}), 1)
    asked = [(frames, question)]
    taken = answer_all(*tiny_qwen, asked, Case(ONE_FRAME, None, {}), 1)
    moving = answer_all(*tiny_qwen, asked, Case("full", None, {}), 1)
    assert taken.answers == still.answers != moving.answers
    assert taken.kept == moving.kept == 144


@pytest.fixture(scope="module")
def table():
    return json.loads((EVAL / "accuracy.json").read_text())


@pytest.fixture(scope="module")
def qwen_table():
    return json.loads((EVAL / "accuracy_qwen.json").read_text())


def row_of(table, method, budget=None):
    (row,) = [r for r in table["rows"] if (r["method"], r["budget"]) == (method, budget)]
    return row


def test_the_shipped_table_belongs_to_this_world(table):
    assert table["provenance"]["worlds_version"] == VERSION
    assert len(table["rows"]) == len(list(cases(144)))
    for row in table["rows"]:
        assert ("unreachable" in row) != (row.get("n", 0) >= 500)
        if "n" in row and row["budget"] is not None:
            assert row["kept_mean"] <= row["budget"] + 0.5


def test_the_shipped_model_sees_by_the_shipped_table(table):
    full, blind = row_of(table, "full"), row_of(table, "text-only")
    assert full["accuracy"] >= 0.9
    assert min(full["by_kind"].values()) >= 0.8
    assert full["accuracy"] - blind["accuracy"] >= 0.35
    quarter = [r["accuracy"] for r in table["rows"] if (r["method"], r["budget"]) == ("random", 36)]
    assert len(quarter) == 3
    assert max(quarter) < full["accuracy"] - 0.15


def test_the_commonest_answer_of_each_kind_is_what_a_blind_guesser_gives():
    class Asked:
        def __init__(self, kind: str, answer: str) -> None:
            self.kind, self.answer = kind, answer

    asked = [Asked("color", a) for a in ("red", "red", "blue")] + [Asked("count", "two")]
    assert commonest_answer(asked) == 0.75


def test_the_shipped_table_of_clips_belongs_to_this_world(qwen_table):
    assert qwen_table["provenance"]["worlds_version"] == VERSION
    assert qwen_table["clips"]["clip_version"] == CLIP_VERSION
    for part, clips, least in ((qwen_table, False, 250), (qwen_table["clips"], True, 150)):
        assert len(part["rows"]) == len(list(cases(part["tokens"], clips)))
        for row in part["rows"]:
            assert ("unreachable" in row) != (row.get("n", 0) >= least)
            if "n" in row and row["budget"] is not None:
                assert row["kept_mean"] <= row["budget"] + 0.5


def test_the_shipped_model_sees_time_by_the_shipped_table(qwen_table):
    clips = qwen_table["clips"]
    full, still = row_of(clips, "full")["by_kind"], row_of(clips, ONE_FRAME)["by_kind"]
    for kind in ("motion", "order"):
        assert full[kind] >= 0.8
        assert still[kind] <= full[kind] - 0.4
    assert row_of(clips, "text-only")["accuracy"] <= row_of(clips, "full")["accuracy"] - 0.35


def test_the_shipped_model_of_clips_needs_the_right_tokens_of_a_picture(qwen_table):
    full, blind = row_of(qwen_table, "full"), row_of(qwen_table, "text-only")
    assert full["accuracy"] >= 0.95
    assert min(full["by_kind"].values()) >= 0.9
    assert full["accuracy"] - blind["accuracy"] >= 0.35
    budget = qwen_table["tokens"] // 4
    rows = [row for row in qwen_table["rows"] if row["budget"] == budget]
    by_chance = [row["accuracy"] for row in rows if row["method"] == "random"]
    assert len(by_chance) == 3
    assert max(by_chance) < full["accuracy"] - 0.15
    assert row_of(qwen_table, "divprune", budget)["accuracy"] > max(by_chance) + 0.05
