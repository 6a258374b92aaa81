"""README.md and the examples do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import transformers
import typer
from made_up_results import content, make_task

from dev.pages import committed_results as committed
from dev.pages import methods as methods_page
from dev.pages import models as models_page
from dev.pages import readme, which
from vlmcompress import auto
from vlmcompress.cli import app
from vlmcompress.methods.registry import METHODS
from vlmcompress.version import NEWEST_TRANSFORMERS

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    assert readme.updated(TEXT) == TEXT, "run `make readme`"


def test_the_page_of_methods_is_up_to_date():
    assert methods_page.PAGE.read_text() == methods_page.page(), "run `make readme`"


@pytest.mark.skipif(
    transformers.__version__ != NEWEST_TRANSFORMERS, reason="lists the types of the newest"
)
def test_the_page_of_models_is_up_to_date():
    assert models_page.PAGE.read_text() == models_page.page(), "run `make readme`"


@pytest.mark.slow
def test_the_page_of_what_to_use_is_up_to_date():
    assert which.PAGE.read_text() == which.page(), "run `make readme`"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Of 70 questions so many are answered wrong."""
    wrong = {
        "divprune": {"25%": 0, "12.5%": 7},
        "scope": {"25%": 60},
        "pool": {"25%": 69},
        "vispruner": 28,
        "divprune+fastv": {"12.5%": 14},
    }
    kept = {"vispruner": 40.4}
    return make_task(tmp_path_factory.mktemp("run"), wrong, kept=kept)


def test_the_page_tells_who_is_better_or_worse_than_random(task):
    never = {"method": "never", "budget": "25%", "cannot": "no"}
    own = {"method": "never", "budget": None, "accuracy": 0.5, "target": None}
    own |= {"tokens": {"before": 144.0, "kept": 20.2}}
    lines = methods_page.by_budget({**task, "cases": [*task["cases"], never, own]}).splitlines()
    assert lines[0] == "| method | 25% (36) | 12.5% (18) | default |"
    assert lines[2:] == [
        "| `full` | - | - | 100.0 |",
        "| `text-only` | - | - | 7.1 |",
        "| `random` | 57.1 | - | - |",
        "| `stride` | 64.3 | - | - |",
        "| `pool` | *1.4* ↓ | - | - |",
        "| `downsample` | 50.0 | - | - |",
        "| `divprune` | **100.0** | 90.0 | - |",
        "| `vispruner` | 60.0 (40.4) | - | - |",
        "| `scope` | *14.3* ↓ | - | - |",
        "| `divprune+fastv` | - | 80.0 | - |",
        "| `never` | - | - | 50.0 (20.2) |",
    ]
    assert methods_page.losers(task, "random") == (
        "- **Lose to `random`**: `scope` (at 25%), `pool` (at 25%)."
    )
    loses = methods_page.losers(task, "stride")
    assert loses.startswith("- **Lose to `stride`**: ")
    assert "`downsample` (at 25%)" in loses
    assert "`vispruner`" not in loses
    some = {"budgets": [{"budget": b, "worse_than_stride": ["a"]} for b in ("50%", "25%")]}
    assert methods_page.losers(some, "stride") == "- **Lose to `stride`**: `a` (at 50%, 25%)."
    none = {"budgets": [{"budget": "50%", "worse_than_random": []}]}
    assert methods_page.losers(none, "random") == "- No method is shown to lose to `random`."


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


def test_the_table_of_right_answers(task, monkeypatch):
    figure = {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 9}
    listed = [{"method": name, **figure} for name in ("never", "divprune+fastv", "divprune")]
    figures = {"25%": listed, "12.5%": listed}
    monkeypatch.setattr(auto, "_tables", lambda: {"behind": figures})
    made = content("tiny-llava", pictures=task)
    monkeypatch.setattr(committed, "results", lambda model: {"tiny-llava": made}[model])
    lines = readme.accuracy().splitlines()
    assert lines[0] == "| method | 36 tokens | 18 tokens |"
    assert lines[2:-2] == [
        "| `full` | 100.0 | 100.0 |",
        "| `text-only` | 7.1 | 7.1 |",
        "| `random` | 57.1 | - |",
        "| `stride` | 64.3 | - |",
        "| `pool` | 1.4 | - |",
        "| `divprune` | 100.0 | 90.0 |",
        "| `divprune+fastv` | - | 80.0 |",
        "| `auto` | 100.0 | 80.0 |",
    ]
    widths = sorted(
        row["interval"][1] - row["interval"][0]
        for row in task["cases"]
        if row["method"] in readme.ACCURATE
    )
    assert len(widths) == 8
    half = (widths[3] + widths[4]) / 4
    for words in (
        "70 held-out questions",
        "`tiny-llava` (144 visual tokens), float32, CPU made up, torch 2, transformers 5",
        f"about {100 * half:.1f} points either way",
        "`auto` takes `divprune`, `divprune+fastv`, chosen by these",
        "(docs/eval/tiny-llava/report.md)",
        "`make accuracy`",
    ):
        assert words in lines[-1], words


def test_the_table_of_clips_also_tells_of_pictures(task, monkeypatch):
    made = content("tiny-qwen", clips=task, pictures={"full": {"accuracy": 0.125}, "scored": 8})
    monkeypatch.setattr(committed, "results", lambda model: {"tiny-qwen": made}[model])
    text = readme.clips()
    assert text.startswith("| method | 36 tokens | 18 tokens |")
    assert "right in 12.5 % of 8 questions" in text
    assert "(docs/eval/tiny-qwen/report.md)" in text


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
    assert {name for name, _ in lines} == {"ask", "calibrate", "check", "eval", "ls", "profile"}
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
