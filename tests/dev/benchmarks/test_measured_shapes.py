"""Which settings the benchmark on published shapes measures, and what it leaves in its file."""

import json
import sys

import pytest

from dev.benchmarks import published_shapes
from dev.benchmarks.shape_cases import CPU, ShapeCase, settings
from dev.pages.speed import RESULTS
from vlmcompress.profiler.measure import Profile, ProfileRow

CASE = "qwen2-0.5b-llava:1:1"
NAME = ShapeCase.read(CASE).name


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command line on a clock that ticks once for each call of `measure`."""
    path, day = tmp_path / "f.json", iter(range(1, 99))

    def measure(case, todo, device, dtype, rounds):
        done = [("full", None), ("text-only", None), *todo]
        date = next(day)
        rows = [ProfileRow(name, budget, f"day {date}") for name, budget in done]
        yield Profile({"date": date}, rows)

    def call(*given):
        monkeypatch.setattr(sys, "argv", ["x", "--out", str(path), "--case", CASE, *given])
        published_shapes.main()
        content = json.loads(path.read_text())
        dates = {
            (row["method"], row["budget"]): row.get("measured", content["cases"][NAME])["date"]
            for row in content["rows"]
        }
        told = {(row["method"], row["budget"]): row["skipped"] for row in content["rows"]}
        assert told == {key: f"day {date}" for key, date in dates.items()}
        return dates

    monkeypatch.setattr(published_shapes, "measure", measure)
    return call


def test_another_run_goes_on_and_again_measures_what_is_named(run):
    ends = {("full", None): 1, ("text-only", None): 1}
    first = run("--methods", "stride,fastv")
    assert first == ends | {("stride", "64"): 1, ("fastv", "64"): 1, ("fastv", None): 1}
    second = run("--methods", "stride, clse")
    clse = {("clse", "64"): 2, ("clse", "25%"): 2, ("clse", None): 2}
    assert second == first | clse
    third = run("--methods", "fastv", "--again")
    assert third == second | {("fastv", "64"): 3, ("fastv", None): 3}
    # By method, as the registry lists them, and by budget, the one of the paper last.
    assert list(third) == [*ends, ("stride", "64"), ("fastv", "64"), ("fastv", None), *clse]
    assert run("--methods", "fastv", "--budgets", "192") == third | {("fastv", "192"): 4}
    whole = run("--again")
    assert {date for (_, budget), date in whole.items() if budget != "192"} == {5}


def test_the_committed_file_is_what_a_run_without_arguments_measures():
    rows = json.loads((RESULTS / "published_shapes.json").read_text())["rows"]
    for case in CPU:
        planned = set(settings(case, "cpu", [], []))
        here = {(row["method"], row["budget"]) for row in rows if row["case"] == case.name}
        assert here - planned == {("full", None), ("text-only", None)}


def test_methods_of_2026_and_papers_of_several_stages_at_a_share_too():
    found = settings(CPU[0], "cpu", [], ["hawk", "divprune", "flashvid", "todre"])
    assert found == [
        *[("hawk", "64"), ("hawk", "25%")],
        *[("divprune", "192"), ("divprune", "128"), ("divprune", "64")],
        *[("flashvid", "64"), ("flashvid", "25%"), ("todre", "64"), ("todre", "25%")],
    ]
    assert settings(CPU[1], "cpu", [], ["hawk", "divprune"]) == [("divprune", "64")]
    assert settings(CPU[1], "cpu", ["25%"], ["hawk"]) == [("hawk", "25%")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "strides"], "unknown method 'strides': did you mean 'stride'?"),
        (["--methods", "full"], "full and text-only are measured beside any other method"),
        (["--budgets", "many"], "'many'"),
        (["--case", "llava-1.5-7b:x"], "as llava-1.5-7b:8:3, got 'llava-1.5-7b:x'"),
        (["--case", "llava-1.5"], "unknown shape 'llava-1.5'"),
    ],
)
def test_wrong_arguments_are_one_line(run, capsys, given, message):
    with pytest.raises(SystemExit) as stop:
        run(*given)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("published_shapes: ")
    assert message in error
    assert error.count("\n") == 1
