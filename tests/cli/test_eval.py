"""`vlmcompress eval`: mistakes are found before anything is loaded or written."""

import functools
import json
import re
import sys

import pytest

from vlmcompress.cli.common import between_commas
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.models import loading


@pytest.fixture
def refused(refuses):
    return functools.partial(refuses, "eval")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "give a folder for the answers and the report: --out DIR"),
        (["--methods", "divprume"], "unknown method 'divprume': did you mean 'divprune'"),
        (["--methods", "fastv(k=x)"], "fastv"),
        (["--budgets", "25 percent"], "25 percent"),
        (["--budgets", ""], "budget"),
        (["--tasks", "picture"], "unknown task 'picture': did you mean 'pictures'"),
        (["--tasks", "no.jsonl"], "no.jsonl"),
        (["--limit", "0"], "a limit is 1 or more, got 0"),
        (["--limit", "pictures=0"], "a limit is 1 or more, got 0"),
        (["--limit", "many"], "limit 'many' is neither a count nor like pictures=500,clips=200"),
        (["--limit", "pictures=5,7.5"], "is neither a count nor like"),
        (["--batch", "0"], "a batch is 1 or more, got 0"),
        (["--max-memory", "lots"], "max_memory='lots' is not possible"),
        (["--check", "b.json", "--max-memory", "2GB"], "it takes no --max-memory"),
        (["--model", ""], "the model has no name"),
        (["--model", "tiny-lava"], "unknown model 'tiny-lava': did you mean 'tiny-llava'"),
        (["--save-baselines", "no/folder/b.json"], "there is no folder"),
        (["--check", "b.json", "--limit", "3"], "it takes no --limit"),
        (["--check", "b.json"], "cannot read 'b.json'"),
    ],
)
def test_mistakes(refused, unloadable, tmp_path, arguments, pattern):
    out = [] if not arguments or "--check" in arguments else ["--out", tmp_path / "run"]
    refused(pattern, *arguments, *out)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--tasks", "clips"], "takes no videos, as clips asks for"),
        (["--seed", "100"], "seed 100 is out of range: task 'pictures' takes 0 to 99$"),
        (["--budgets", "25%,999"], "no method can run at budget 999: .*144 visual tokens"),
        (["--limit", "100000"], "100000 questions are too many"),
        (["--limit", "clips=5"], "unknown task with a limit 'clips'"),
        (["--max-memory", "1GB"], "frames of llava models are not known to be encoded each"),
    ],
)
def test_mistakes_that_a_model_or_task_finds(refused, loaded, tmp_path, arguments, pattern):
    refused(pattern, *arguments, "--out", tmp_path / "run")


def test_a_folder_that_holds_a_run(refused, loaded, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"cases": {}, "tasks": []}')
    refused("holds a run: go on with --resume", "--out", folder)


def test_only_the_first_of_several_processes_speaks(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    result = cli("eval", "--limit", 0, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr == ""


def test_help_is_light(cli):
    assert "accelerate launch" in cli("eval", "--help").stdout


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a, b", ["a", "b"]),
        ("a(x=1, y=[2,3])+b,c", ["a(x=1, y=[2,3])+b", "c"]),
        ("", [""]),
    ],
)
def test_commas_inside_parentheses_separate_nothing(text, parts):
    assert between_commas(text) == parts


class First:
    rank = 0


class Second:
    rank = 1


@pytest.mark.parametrize(("part", "told"), [(First(), 2), (Second(), 0)])
def test_time_left(monkeypatch, capsys, part, told):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("vlmcompress.cli.progress_bar.time.monotonic", lambda: next(clock))
    with Advance(40, part) as advance:
        for _ in range(4):
            advance(10, "pictures: divprune at 25%")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told
    if told:
        assert re.fullmatch(
            r" ?\d+%, \d+\.\d min left: pictures: divprune at 25%", lines[0].strip()
        )


def test_the_model_is_not_needed_for_the_checks(unloadable):
    assert loading.resolve("tiny-llava")


@pytest.mark.parametrize("name", ["scipy", "matplotlib", "yaml"])
def test_a_missing_package_is_named_before_anything_runs(
    refused, unloadable, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    words = rf"this needs the extra eval, and {name} is missing: pip install 'vlmcompress\[eval\]'"
    refused(words, "--out", tmp_path / "run")


SMALL = ("--limit", 1, "--budgets", "25%", "--tasks", "pictures/color", "--device", "cpu")


def test_the_terminal_shows_a_table_and_claims_nothing_of_one_question(
    cli, loaded, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("vlmcompress.eval.report.plots.draw", lambda results: [])
    monkeypatch.setattr("vlmcompress.eval.report.examples.examples", lambda *all: [])
    result = cli("eval", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    table = [
        line.split() for line in lines if line.startswith(("pictures/color  ", "full", "divprune"))
    ]
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert table[0] == ["pictures/color", "25%"]
    assert table[1][0] == "full"
    assert table[1][1] in ("0.0%", "100.0%")
    assert table[2][0] == "divprune"
    assert "Best:" not in result.stdout
    assert "too few to tell" in result.stdout or "No method gave a right answer" in result.stdout
    assert "fastv at 25%: BudgetError" not in result.stderr


def test_who_stops_it_hears_how_to_go_on(cli, loaded, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlmcompress.eval.run.evaluate.run", stopped)
    result = cli("eval", *SMALL, "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "with --resume goes on" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_long_clips_in_pieces_are_answered_as_whole_ones(cli, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmcompress.eval.report.plots.draw", lambda results: [])
    monkeypatch.setattr("vlmcompress.eval.report.examples.examples", lambda *all: [])
    asked = (
        "eval",
        "--model",
        "tiny-qwen",
        "--tasks",
        "clips-16",
        "--limit",
        3,
        "--budgets",
        "50%",
    )
    found = []
    for number, more in enumerate([(), ("--max-memory", "4MB")]):
        result = cli(
            *asked, *more, "--batch", 2, "--device", "cpu", "--out", tmp_path / f"{number}"
        )
        assert result.exit_code == 0, result.output
        (file,) = (tmp_path / f"{number}").glob("answers*.jsonl")
        found.append([json.loads(line) for line in file.read_text().splitlines()])
    whole, pieces = found
    assert [line for line in pieces if "error" in line] == []
    assert pieces == whole
    run = json.loads((tmp_path / "1" / "run.json").read_text())
    assert run["provenance"]["max_memory"] == "4MB"
