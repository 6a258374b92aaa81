"""README.md and the examples do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import typer

from vlmcompress.cli import app
from vlmcompress.eval import methods_page, readme
from vlmcompress.methods import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    assert readme.updated(TEXT) == TEXT, "run `make readme`"


def test_the_page_of_methods_is_up_to_date():
    assert methods_page.PAGE.read_text() == methods_page.page(), "run `make readme`"


def test_the_page_tells_who_is_better_or_worse_than_random():
    rows = [
        {"method": "random", "budget": 9, "options": {"seed": seed}, "hits": hits}
        for seed, hits in enumerate(["0101" * 20, "1010" * 20])
    ]
    rows += [
        {"method": name, "budget": 9, "options": {}, "hits": hits}
        for name, hits in {"good": "1" * 80, "bad": "0" * 80, "same": "0110" * 20}.items()
    ]
    rows = [row | {"accuracy": row["hits"].count("1") / 80, "kept_mean": 9.0} for row in rows]
    rows.append({"method": "never", "budget": 9, "options": {}, "impossible": "no"})
    lines = methods_page.by_budget(rows).splitlines()
    assert lines[2:] == [
        "| `random` | 50.0 | - |",
        "| `good` | **100.0** | - |",
        "| `bad` | *0.0* ↓ | - |",
        "| `same` | 50.0 | - |",
        "| `never` | - | - |",
    ]
    assert methods_page.losers(rows) == "**Lose to `random`**: `bad` (at 9)."


def test_check_notices_an_old_part(monkeypatch, tmp_path):
    old = tmp_path / "README.md"
    changed = TEXT.replace("| `divprune` | projector", "| `divprune2` | projector")
    assert changed != TEXT
    old.write_text(changed)
    monkeypatch.setattr(readme, "README", old)
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        readme.main()
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert old.read_text() == TEXT


def test_missing_marks_are_an_error():
    with pytest.raises(ValueError, match="<!-- models -->"):
        readme.updated(TEXT.replace("<!-- models -->", ""))


def test_accuracy_table(tmp_path):
    rows = [
        {"method": "full", "budget": None, "n": 600, "accuracy": 0.95},
        {"method": "random", "budget": 36, "options": {"seed": 0}, "n": 600, "accuracy": 0.5},
        {"method": "random", "budget": 36, "options": {"seed": 1}, "n": 600, "accuracy": 0.6},
        {"method": "fastv", "budget": 72, "n": 600, "accuracy": 0.9},
        {"method": "fastv", "budget": 36, "unreachable": "no"},
    ]
    source = {
        "command": "make it",
        "model": "tiny-llava",
        "dtype": "float32",
        "versions": {"torch": "2", "transformers": "5"},
    }
    file = tmp_path / "accuracy.json"
    table = {"provenance": source, "commonest_answer": 0.27, "rows": rows}
    file.write_text(json.dumps(table))
    lines = readme.accuracy(file).splitlines()
    assert lines[0] == "| method | 72 tokens | 36 tokens |"
    assert lines[2:5] == [
        "| `full` | 95.0 | 95.0 |",
        "| `random` | - | 55.0 |",
        "| `fastv` | 90.0 | - |",
    ]
    assert "600 held-out questions" in lines[-1]
    assert "27.0 % of always" in lines[-1]
    assert "`make it`" in lines[-1]


def test_speed_table(tmp_path):
    full = {"case": "c", "method": "full", "tokens": [576, 576], "ttft_ms": [30.0, 29.0, 31.0]}
    full |= {"achieved": 0.0, "predicted": 0.0}
    row = {"case": "c", "method": "divprune", "tokens": [576, 64.0], "ttft_ms": [12.0, 11.0, 13.0]}
    row |= {"achieved": 0.875, "predicted": 0.9}
    others = [{**row, "method": "hiprune"}, {"case": "c", "method": "fastv", "skipped": "no"}]
    made_on = {"prompt": {"text": 40}, "cpu": "d", "threads": 2, "dtype": "bfloat16"}
    made_on |= {"versions": {"torch": "2", "transformers": "5"}}
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"cases": {"c": made_on}, "rows": [full, row, *others]}))
    lines = readme.speed(file).splitlines()
    assert lines[2:4] == [
        "| c | `full` | 576 of 576 | 30 (29 to 31) | 1.00 | 0 % | 0 % |",
        "| c | `divprune` | 64 of 576 | 12 (11 to 13) | 2.50 | 88 % | 90 % |",
    ]
    assert lines[4] == ""
    assert "d, 2 threads, bfloat16, torch 2, transformers 5" in lines[-1]


def test_the_python_example(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(re.findall(r"^.+$", code, re.MULTILINE)) <= 12
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "144 -> 36 tokens" in printed
    assert printed.splitlines()[0].strip(), "an answer"


def test_the_commands_parse():
    """Every `vlmcompress` line is made of options that exist."""
    lines = re.findall(r"^vlmcompress (\w+)(.*?)(?:\s#.*)?$", TEXT, re.MULTILINE)
    assert {name for name, _ in lines} == {"ask", "calibrate", "ls", "profile"}
    for name, rest in lines:
        command = typer.main.get_command(app).commands[name]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert set(re.findall(r"(?<!\w)--[\w-]+", rest)) <= known


def test_targets_of_the_makefile_exist():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"(?:^|`)make ([a-z-]+)", TEXT + contributing, re.MULTILINE)
    assert {"demo", "test", "setup"} <= set(named)
    assert set(named) <= set(targets)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", TEXT):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example, monkeypatch, capsys):
    assert len(example.read_text().splitlines()) < 60
    samples = ROOT / "vlmcompress" / "assets" / "samples"
    asked = [str(min(samples.glob("*.png"))), "what color is the circle ?"]
    if "video" in example.name:
        asked = [str(min(samples.glob("*.mp4"))), "which way does the circle move ?"]
    monkeypatch.setattr(sys, "argv", [str(example), *asked])
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # one registers its own
    runpy.run_path(str(example), run_name="__main__")
    assert "144 -> 36 tokens" in capsys.readouterr().out
