"""A broken method in a real run is caught: the report says so, loudly."""

import json
import shutil
from dataclasses import replace

import pytest

from vlmcompress.eval.report.write import write_report
from vlmcompress.eval.results.summary import read_run
from vlmcompress.eval.run import runner
from vlmcompress.eval.run.answering import answer
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY, Case
from vlmcompress.eval.run.evaluate import Evaluation, Plan

METHOD = Case("divprune", "25%")


class Silent:
    """No progress."""

    def __init__(self, steps, share):
        self.steps = steps

    def __enter__(self):
        return lambda steps, what: None

    def __exit__(self, *error):
        return None


def nothing(model, processor, inputs, case, *limit, **generation):
    """As a fork whose hook is never called."""
    return answer(model, processor, inputs, Case(FULL, None), *limit, **generation)


def everything(model, processor, inputs, case, *limit, **generation):
    """As a mask that covers all."""
    return answer(model, processor, inputs, Case(TEXT_ONLY, None), *limit, **generation)


def shuffled(model, processor, inputs, case, *limit, **generation):
    """As a batch that was sorted by length and never put back."""
    found = answer(model, processor, inputs, case, *limit, **generation)
    return replace(found, answers=[*found.answers[1:], found.answers[0]])


@pytest.fixture
def evaluation(monkeypatch, tiny_llava):
    monkeypatch.setattr("vlmcompress.models.loading.load", lambda *args, **options: tiny_llava)
    plan = Plan("tiny-llava", [METHOD.method], [METHOD.budget], limit=63, batch=21, device="cpu")
    return Evaluation(plan)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The folder of a run without faults, filled by the first test."""
    return tmp_path_factory.mktemp("honest") / "run"


@pytest.fixture
def folder(evaluation, honest, tmp_path):
    """Answers of all cases but one."""
    if not honest.exists():
        evaluation.carry_out(honest, False, Silent)
    shutil.copytree(honest, tmp_path / "run")
    for file in (tmp_path / "run").glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["method"] != METHOD.method]
        file.write_text("".join(kept))
    return tmp_path / "run"


def report(evaluation, folder):
    """The row of the method, and report.md."""
    evaluation.carry_out(folder, True, Silent)
    write_report(folder, read_run(folder), evaluation.tasks)
    results = json.loads((folder / "results.json").read_text())
    cases = results["tasks"]["pictures"]["cases"]
    others = [case for case in cases if case["method"] != METHOD.method]
    # Baselines with a grid of their own may be off their budget; nothing else is said of them.
    said = [text for case in others for text in case.get("warnings", [])]
    assert all("off its budget" in text for text in said), said
    (found,) = (case for case in cases if case["method"] == METHOD.method)
    return found, (folder / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (nothing, "divprune at 25% did not engage: it kept all 144 visual tokens"),
        (everything, "divprune at 25% dropped everything: 63 of 63 samples kept no visual token"),
        (shuffled, "answers of divprune at 25% look shuffled between samples"),
    ],
)
def test_a_broken_method_is_caught(monkeypatch, evaluation, folder, broken, words):
    def instead(model, processor, inputs, case, *limit, **generation):
        assert case == METHOD  # the others have answered
        return broken(model, processor, inputs, case, *limit, **generation)

    monkeypatch.setattr(runner, "answer", instead)
    found, text = report(evaluation, folder)
    assert any(words in warning for warning in found["warnings"])
    assert "Do not trust these results" in text
    assert words.split(":")[0] in text


@pytest.mark.slow
def test_an_honest_method_is_not(evaluation, folder):
    found, text = report(evaluation, folder)
    assert found["warnings"] == []
    assert found["accuracy"] > 0.8
    assert "did not engage" not in text
