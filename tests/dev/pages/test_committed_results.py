"""The committed results: how they are read, and that they keep their promises."""

import json

import pytest

from dev.pages import committed_results as committed
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.cases import ALL, BASELINES, ONE_FRAME, TEXT_ONLY, cases
from vlmcompress.eval.tasks.registry import load_tasks

BUDGETS = ["50%", "25%", "12.5%", "6.25%"]


def test_reading(monkeypatch, tmp_path):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    with pytest.raises(VLMCompressError, match="no results of 'tiny-qwen' are committed"):
        committed.results("tiny-qwen")
    for model in committed.FAMILIES:
        (tmp_path / model).mkdir()
        (tmp_path / model / "results.json").write_text(json.dumps({"of": model}))
    assert committed.all_results() == {m: {"of": m} for m in ("tiny-llava", "tiny-qwen")}
    (tmp_path / "tiny-qwen" / "results.json").write_text("{")
    with pytest.raises(VLMCompressError, match=r"cannot read .*results\.json"):
        committed.results("tiny-qwen")


def test_scores():
    assert committed.scores_of({"scores": "0110"}).tolist() == [0, 1, 1, 0]
    assert committed.scores_of({"scores": [0.3333, 1.0]}).tolist() == [0.3333, 1]


@pytest.fixture(scope="module")
def all_results():
    return committed.all_results()


def tasks(all_results):
    return [
        (model, name, task)
        for model, content in all_results.items()
        for name, task in content["tasks"].items()
    ]


def find(task, method, budget=None):
    (row,) = [r for r in task["cases"] if (r["method"], r["budget"]) == (method, budget)]
    return row


def test_they_belong_to_these_tasks_methods_and_budgets(all_results):
    assert [(model, name) for model, name, _ in tasks(all_results)] == [
        ("tiny-llava", "pictures"),
        ("tiny-qwen", "pictures"),
        ("tiny-qwen", "clips"),
    ]
    for model, name, task in tasks(all_results):
        content = all_results[model]
        assert content["provenance"]["model"] == model
        assert content["budgets"] == BUDGETS
        (now,) = load_tasks([name])
        described = {one["name"]: one for one in content["descriptions"]}[name]
        assert described == {**now.describe(), "limit": task["asked"]}
        assert task["version"] == now.version
        assert task["failed"] == 0
        assert task["scored"] == task["asked"] >= 192
        measured = {(row["method"], row["budget"]) for row in task["cases"]}
        wanted = cases([ALL], BUDGETS, now.medium == "video")
        asked = {(case.method, case.budget) for case in wanted}
        assert asked <= measured


COUNTS = ["192", "128", "64", "32"]


def test_those_at_the_papers_counts(all_results):
    """Of `small-llava`: every method."""
    assert committed.AT_COUNTS.keys().isdisjoint(committed.FAMILIES)
    ((model, content),) = committed.at_counts().items()
    ((name, task),) = content["tasks"].items()
    assert (content["provenance"]["model"], name, task["tokens"]) == (model, "posters", 576)
    assert content["budgets"] == COUNTS
    (now,) = load_tasks([name])
    (described,) = content["descriptions"]
    assert described == {**now.describe(), "limit": task["asked"]}
    assert task["failed"] == 0
    assert task["scored"] == task["asked"] == 270
    measured = {(row["method"], row["budget"]) for row in task["cases"]}
    assert {(case.method, case.budget) for case in cases([ALL], COUNTS, False)} <= measured


def test_the_models_see(all_results):
    for _, name, task in tasks(all_results):
        full, blind = find(task, "full"), find(task, TEXT_ONLY)
        assert full["accuracy"] >= 0.9
        assert min(kind["accuracy"] for kind in full["by_kind"].values()) >= 0.7
        assert full["accuracy"] - blind["accuracy"] >= 0.35
        chance = [find(task, method, "25%")["accuracy"] for method in BASELINES[:3]]
        assert max(chance) < full["accuracy"] - 0.15
        if name == "pictures":
            assert find(task, "divprune", "25%")["accuracy"] > max(chance) + 0.05


def test_the_model_of_clips_sees_time(all_results):
    clips = all_results["tiny-qwen"]["tasks"]["clips"]
    full, still = find(clips, "full")["by_kind"], find(clips, ONE_FRAME)["by_kind"]
    for kind in ("motion", "order"):
        assert still[kind]["accuracy"] <= full[kind]["accuracy"] - 0.4
