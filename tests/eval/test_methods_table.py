"""The table of all methods: what it runs, and that it goes on where it stopped."""

import json

import pytest

from vlmcompress.errors import BudgetError
from vlmcompress.eval import methods_table
from vlmcompress.eval.accuracy_table import ONE_FRAME, RANDOM_SEEDS, SHARES, Outcome
from vlmcompress.eval.methods_table import COMPOSED, Table, cases, run
from vlmcompress.eval.worlds import Question
from vlmcompress.methods import METHODS

QUESTIONS = [Question("place", number % 2, "?", answer) for number, answer in enumerate("aabb")]
SOURCE = {"model": "m", "weights_sha256": "1", "worlds_version": 1, "questions": {"pictures": 4}}


@pytest.mark.parametrize("clips", [False, True])
def test_every_method_is_run_at_every_budget(clips):
    listed = list(cases("tiny-llava", 144, clips))
    assert listed[0].method == "full"
    assert (ONE_FRAME in [case.method for case in listed]) is clips
    for name in [*METHODS.names(), *COMPOSED]:
        budgets = [case.budget for case in listed if case.method == name]
        times = len(RANDOM_SEEDS) if name == "random" else 1
        expected = [144 // share for share in SHARES for _ in range(times)]
        if name not in COMPOSED:
            method = METHODS.get(name)
            expected = expected if method.takes_budget else []
            expected += [None] if method.adaptive or not method.takes_budget else []
        assert budgets == expected
    (table,) = {case.options["table"] for case in listed if case.method == "embedlens"}
    assert table == "tiny-llava"


@pytest.fixture
def answers(monkeypatch):
    """Cases that were run, in place of a model."""
    ran = []

    def answer_all(model, processor, asked, case, batch):
        ran.append((case.method, case.budget))
        if case.method == "fastv":
            raise BudgetError("never")
        return Outcome(["a"] * 4, 1.0, 0.1)

    monkeypatch.setattr(methods_table, "answer_all", answer_all)
    monkeypatch.setattr(methods_table, "visual_tokens", lambda *_: 32)
    return ran


def asked():
    return [(None, question) for question in QUESTIONS]


def test_what_a_file_holds_is_not_run_again(answers, tmp_path):
    path = tmp_path / "table.json"
    head = {"provenance": SOURCE, "pictures": {"rows": []}}
    run(None, None, asked(), "pictures", Table(path, head), 2)
    rows = json.loads(path.read_text())["pictures"]["rows"]
    first = len(answers)
    assert first == len(rows) == len(list(cases("m", 32, False)))
    assert next(row for row in rows if row["method"] == "fastv")["impossible"] == "never"
    assert rows[0]["hits"] == "1100"
    del rows[-2:]
    path.write_text(json.dumps(head | {"pictures": {"rows": rows}}))
    run(None, None, asked(), "pictures", Table(path, {**head, "pictures": {"rows": []}}), 2)
    assert len(answers) == first + 2
    assert len(json.loads(path.read_text())["pictures"]["rows"]) == first


def test_other_questions_begin_anew(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"provenance": SOURCE, "pictures": {"rows": [1]}}))
    other = {"provenance": SOURCE | {"questions": {"pictures": 5}}, "pictures": {"rows": []}}
    assert Table(path, other).rows("pictures") == []
    same = {"provenance": SOURCE, "pictures": {"rows": []}}
    assert Table(path, same).rows("pictures") == [1]
