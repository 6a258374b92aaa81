"""Which methods auto takes, by results of which every answer is known."""

import sys

import pytest
from made_up_results import content, make_task
from made_up_run import MadeUp

from dev.pages import auto_table
from dev.pages import committed_results as committed
from dev.pages.auto_table import document, figures, taken
from vlmcompress import auto
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.methods.composition.spec import parse

LLAVA = {
    "scope": 7,
    "divprune": 7,
    "divprune+fastv": 4,
    "cdpruner": 0,  # reads the question
    "zoo-prune": 0,  # probes the projector
    "hiprune": 0,  # of this model only
    "pitome": 10,
    "pitome+divprune": 0,  # in the encoder and behind it
    "vispruner": 0,  # keeps too much
    "restore(stride)": 0,  # adds a bias to attention
}
QWEN = {
    "scope": 14,
    "divprune": 14,
    "divprune+fastv": 17,
    "cdpruner": 0,
    "zoo-prune": 0,
    "pixelprune": 21,
    "vispruner": 0,
    "restore(stride)": 0,
}
BASELINES = {"random", "stride"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    clips = MadeUp("clips", size=42, medium="video")
    seconds, kept = {"scope": 0.5, "divprune": 0.8}, {"vispruner": 60.0}
    slow = {"scope": 0.6, "divprune": 0.25}  # the slowest time counts: 0.6 and 0.8
    one, two, three = (tmp_path_factory.mktemp(name) for name in ("one", "two", "three"))
    misses = {**QWEN, "scope": 4, "divprune": 4}
    pictures = make_task(one, LLAVA, seconds=seconds, kept=kept)
    others = {
        "pictures": make_task(two, QWEN, seconds=slow, kept=kept),
        "clips": make_task(three, misses, clips, slow, kept),
    }
    return {
        "tiny-llava": content("tiny-llava", pictures=pictures),
        "tiny-qwen": content("tiny-qwen", **others),
    }


def names(listed):
    return [one["method"] for one in listed]


@pytest.mark.slow
def test_the_most_accurate_of_what_may_be_taken_comes_first(results):
    found = document(results)
    assert list(found) == ["origin", "pixels", "encoder", "behind"]
    behind = found["behind"]["25%"]
    # As accurate, and faster where it is slowest.
    assert names(behind)[:3] == ["scope", "divprune", "divprune+fastv"]
    assert set(names(behind)[3:]) == BASELINES
    assert names(found["encoder"]["25%"]) == ["pitome"]
    assert names(found["pixels"]["25%"]) == ["pixelprune", "downsample"]


@pytest.mark.slow
def test_figures_count_all_answers_together(results):
    found = {one["method"]: one for one in document(results)["behind"]["25%"]}
    scope = found["scope"]
    right, asked = (70 - 7) + (70 - 14) + (42 - 4), 70 + 70 + 42
    assert scope["n"] == asked
    assert scope["accuracy"] == pytest.approx(right / asked, abs=1e-4)
    interval = statistics.proportion([1.0] * right + [0.0] * (asked - right))
    assert scope["interval"] == pytest.approx([interval.low, interval.high], abs=1e-4)
    assert found["random"]["n"] == asked


@pytest.mark.slow
def test_only_shares_that_all_tasks_have(results, tmp_path):
    misses = {"divprune": {"25%": 2, "50%": 1, "36": 3}}
    more = make_task(tmp_path, misses, MadeUp(size=14))
    tables = {**results, "tiny-llava": content("tiny-llava", pictures=more)}
    assert list(document(tables)["behind"]) == ["25%"]
    assert list(document({"tiny-llava": tables["tiny-llava"]})["behind"]) == ["25%", "50%"]


@pytest.mark.slow
def test_a_method_that_a_family_lets_in_elsewhere(results):
    """Shrinking the picture acts on pixels in one family, behind the projector in the other."""
    task = results["tiny-llava"]["tasks"]["pictures"]
    assert "downsample" in names(figures([("llava", task)], "25%", ["projector", "decoder"]))
    assert figures([("llava", task)], "25%", ["pixels"]) == []
    assert auto_table.acts_at(parse("pixelprune"), "llava") == set()
    assert auto_table.acts_at(parse("downsample"), "qwen2_5_vl") == {"pixels"}
    assert auto_table.acts_at(parse("divprune+fastv"), "llava") == {"projector", "decoder"}


@pytest.mark.slow
def test_what_it_takes_in_a_task_is_what_ran_there(results, monkeypatch):
    monkeypatch.setattr(auto, "_tables", lambda: document(results))
    task = results["tiny-llava"]["tasks"]["pictures"]
    assert taken(task) == {"25%": "scope"}
    rows = [row for row in task["cases"] if row["method"] != "scope"]
    assert taken({**task, "cases": rows}) == {"25%": "divprune"}
    assert len(methods_at(task, "25%")) > 5


@pytest.mark.slow
def test_a_run_of_auto_itself_is_passed_over(results):
    task = results["tiny-llava"]["tasks"]["pictures"]
    rows = [{**row, "method": "auto"} for row in task["cases"] if row["method"] == "scope"]
    cases = [*task["cases"], *rows]
    assert "auto" not in names(figures([("llava", {**task, "cases": cases})], "25%", ["projector"]))


@pytest.mark.slow
def test_the_command_writes_the_file(results, monkeypatch, tmp_path):
    monkeypatch.setattr(committed, "all_results", lambda folder=None: results)
    monkeypatch.setattr(sys, "argv", ["auto_table", "--out", str(tmp_path / "auto.json")])
    auto_table.main()
    assert '"divprune+fastv"' in (tmp_path / "auto.json").read_text()
