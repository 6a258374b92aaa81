"""The gate: a method that got worse fails, noise does not."""

import json

import numpy as np
import pytest

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval import gate
from vlmcompress.eval.gate import baselines_of, compare, judge, save
from vlmcompress.eval.run.cases import Case

ONE, OTHER = ("pictures", Case("divprune", "25%")), ("pictures", Case("fastv", None))


def scores(right, of=100, start=0):
    found = np.zeros(of)
    found[start : start + right] = 1
    return found


def test_the_same_scores_pass():
    verdict = judge({ONE: scores(90), OTHER: scores(50)}, {ONE: scores(90), OTHER: scores(50)})
    assert verdict.passed
    assert verdict.lines[0] == "ok     pictures, divprune at 25%: 90.0 -> 90.0 %, p 1"


@pytest.mark.parametrize(
    ("lost", "won", "passed"),
    [
        (6, 0, True),  # p = 2^-6 > 0.01
        (7, 0, False),
        (7, 7, True),  # other questions, no fewer
        (0, 30, True),  # better
        (20, 5, False),
    ],
)
def test_worse_beyond_noise(lost, won, passed):
    before, now = scores(60), scores(60)
    now[:lost] = 0
    now[60 : 60 + won] = 1
    verdict = judge({ONE: before}, {ONE: now})
    assert verdict.passed is passed
    assert verdict.lines[0].startswith("ok" if passed else "WORSE")


def test_the_number_of_cases_is_corrected_for():
    before, now = scores(60), scores(60)
    now[:7] = 0
    others = {("pictures", Case("stride", f"{n}")): scores(50) for n in range(2, 30)}
    assert judge({ONE: before, **others}, {ONE: now, **others}).passed
    assert not judge({ONE: before}, {ONE: now}).passed


def test_scores_between_0_and_1():
    before, now = np.full(40, 0.9), np.full(40, 0.4)
    assert not judge({ONE: before}, {ONE: now}).passed
    assert judge({ONE: now}, {ONE: before}).passed


def test_what_cannot_run_any_more_is_worse():
    verdict = judge({ONE: scores(90), OTHER: scores(90)}, {ONE: scores(90)})
    assert not verdict.passed
    assert verdict.lines[1] == "WORSE  pictures, fastv: it cannot run any more"


def test_another_number_of_questions():
    with pytest.raises(VLMCompressError, match="99 questions were scored, 100 before"):
        judge({ONE: scores(90)}, {ONE: scores(90, of=99)})


RESULTS = {
    "provenance": {
        "model": "tiny-llava",
        "weights_sha256": "?",
        "seed": 0,
        "batch": 4,
        "dtype": "float32",
    },
    "methods": ["divprune"],
    "budgets": ["25%"],
    "descriptions": [{"name": "pictures", "version": 0, "limit": 4}],
    "tasks": {
        "pictures": {
            "cases": [
                {"method": "full", "budget": None, "accuracy": 1.0, "scores": "1111", "more": 1},
                {"method": "random", "budget": "25%", "accuracy": 0.5, "scores": [0.5] * 4},
                {"method": "fastv", "budget": "25%", "cannot": "too little"},
            ]
        }
    },
}


def test_baselines_hold_what_ran():
    (kept,) = baselines_of(RESULTS)["tasks"]["pictures"]
    assert kept == {"method": "full", "budget": None, "accuracy": 1.0, "scores": "1111"}


def test_a_file_holds_several_models(tmp_path):
    file = tmp_path / "baselines.json"
    other = {"provenance": {**RESULTS["provenance"], "model": "tiny-qwen"}}
    for results in (RESULTS, RESULTS | other, RESULTS):
        save(file, results)
    content = json.loads(file.read_text())
    assert list(content["models"]) == ["tiny-llava", "tiny-qwen"]
    assert content["models"]["tiny-llava"] == baselines_of(RESULTS)
    file.write_text("{")
    with pytest.raises(VLMCompressError, match="is not JSON"):
        save(file, RESULTS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is no file of baselines: vlmcompress eval --save-baselines writes one"),
        ('{"format": 2, "models": {}}', "is no file of baselines"),
        ('{"format": 1, "models": {"tiny-llava": {}}}', "is no file of baselines: KeyError"),
        (json.dumps({"format": 1, "models": {"m": baselines_of(RESULTS)}}), "another version of"),
    ],
)
def test_wrong_files(tmp_path, content, words):
    file = tmp_path / "baselines.json"
    file.write_text(content)
    with pytest.raises(VLMCompressError, match=words):
        compare(file, "cpu", lambda steps, share: pytest.fail("nothing may run"))


def test_no_file(tmp_path):
    with pytest.raises(VLMCompressError, match=r"cannot read .*No such file"):
        compare(tmp_path / "no.json", "cpu", gate.Evaluation)
