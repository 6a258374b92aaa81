"""docs/long_clips.md is what the committed figures say."""

from types import SimpleNamespace

import pytest

from dev.benchmarks import long_clips as benchmark
from dev.pages import long_clips
from dev.pages.pictures import long_clips as picture
from vlmcompress.eval.worlds.long_clips import LENGTHS


@pytest.fixture(scope="module")
def measured():
    return long_clips.figures()


def test_the_page_is_up_to_date_and_shows_the_picture():
    assert long_clips.PAGE.read_text() == long_clips.page()
    assert (long_clips.ROOT / "docs" / "pictures" / "long_clips.svg").is_file()


def test_in_chunks_memory_does_not_grow_with_the_clip(measured):
    rows = measured["memory"]
    limit = benchmark.MAX_MEMORY
    assert {(row["frames"], row["max_memory"]) for row in rows} == {
        (frames, at) for frames in LENGTHS for at in (None, limit)
    }
    assert long_clips.growth(rows, limit, "process") <= long_clips.FLAT
    assert long_clips.growth(rows, None, "process") > long_clips.FLAT
    assert f"which is flat within {long_clips.FLAT:.0%}" in " ".join(long_clips.page().split())


def test_what_grows_is_worked_out_and_said():
    rows = [
        {"frames": frames, "max_memory": limit, "process": process}
        for limit, sizes in ((None, (100, 400)), ("8MB", (100, 111)))
        for frames, process in zip((16, 256), sizes, strict=True)
    ]
    assert long_clips.growth(rows, None, "process") == pytest.approx(3)
    assert long_clips.growth(rows, "8MB", "process") == pytest.approx(0.11)
    more = {"tensors": 1, "pixels": 1, "tokens": [2, 1]}
    said = long_clips._memory(
        {
            "memory": [row | more for row in rows],
            "made": {"model": "m", "method": "x", "budget": "1"},
        }
    )
    assert "which is NOT flat within 10%" in " ".join(said.split())


def test_only_what_beats_the_blind_beyond_the_intervals_is_named():
    def row(task, case, low, high):
        return {"task": task, "kind": "order", "case": case, "interval": [low, high]}

    rows = [
        *(row("clips", "full", 0.9, 1), row("clips", "text-only", 0, 0.1)),
        *(row("clips-16", "full", 0.4, 0.6), row("clips-16", "text-only", 0.1, 0.3)),
        *(row("clips-64", "full", 0.2, 0.5), row("clips-64", "text-only", 0.1, 0.3)),
    ]
    assert " in `clips-16/order`. No" in long_clips._reading(rows)
    assert " in none. No" in long_clips._reading(rows[4:])


def test_means_weigh_every_question():
    rows = [
        {"frames": 16, "n": 30, "accuracy": 1.0},
        {"frames": 16, "n": 10, "accuracy": 0.0},
        {"frames": 64, "n": 10, "accuracy": 0.5},
    ]
    assert picture._means(rows) == [(16, 0.75), (64, 0.5)]


def test_every_length_is_asked_in_every_case_or_named(measured):
    asked = {(row["task"], row["case"]) for row in measured["accuracy"]}
    tasks = {"clips", *(f"clips-{frames}" for frames in LENGTHS)}
    named = {name.removeprefix("accuracy of ") for name in measured["missing"]}
    assert asked == {(task, case.method) for task in tasks - named for case in benchmark.CASES}
    assert {"clips", "clips-16"} <= tasks - named
    for name in measured["missing"]:
        assert name in long_clips.page().partition("Not measured yet: ")[2]
    for row in measured["accuracy"]:
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]


def test_what_a_file_holds_is_not_measured_again(tmp_path, monkeypatch):
    asked = []

    def process(command, **_):
        if "dev.benchmarks.long_clips" in command:  # and not git, which is asked for the commit
            asked.append(command[3:])
        return SimpleNamespace(stdout="[1]")

    monkeypatch.setattr(benchmark.subprocess, "run", process)
    for _ in range(2):
        benchmark.main(["--out", str(tmp_path / "x.json"), "--limit", "40"])
    assert asked == list(benchmark.pieces(40).values())
    assert ["--asked", "clips-256", str(benchmark.FEWEST)] in asked
    assert ["--held", "64", benchmark.MAX_MEMORY] in asked


def test_a_process_says_what_it_held(tiny_qwen, monkeypatch):
    monkeypatch.setattr(benchmark, "load", lambda *_, **__: tiny_qwen)
    whole, pieces = benchmark.held(16, None), benchmark.held(16, "4MB")
    assert whole["tokens"] == pieces["tokens"] == [288, 64]
    assert pieces["tensors"] < whole["tensors"]
    assert whole["loaded"] <= whole["read"] <= whole["process"]
    rows = benchmark.accuracy(*tiny_qwen, "clips-16", 6)
    assert {(row["kind"], row["n"]) for row in rows} == {
        *(("order", 2), ("often", 2), ("second", 2)),
    }
