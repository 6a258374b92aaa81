"""A whole evaluation of the built-in model, killed, gone on with, and shared by two processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ARGUMENTS = ["--methods", "divprune,fastv(k=1)", "--budgets", "25%", "--limit", "42"]
ARGUMENTS += ["--batch", "7", "--device", "cpu"]
ROOT = Path(__file__).parents[3]


def command(out, *more, processes=1):
    """What starts an evaluation."""
    launcher = [sys.executable, "-m", "vlmcompress"]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        kind = ["--mixed_precision", "no", "--dynamo_backend", "no"]
        count = ["--num_processes", str(processes)]
        launcher = [sys.executable, *launch, *kind, *count, "--module", "vlmcompress"]
    return [*launcher, "eval", *ARGUMENTS, "--out", str(out), *more]


def start(*arguments, **kwargs):
    # One thread each: the two processes would get one each anyway, and sums must not differ.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments, **kwargs), cwd=ROOT, env=environment, **pipes)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def lines(folder):
    found = [path.read_bytes() for path in sorted(folder.glob("answers-*.jsonl"))]
    return sorted(b"".join(found).splitlines(keepends=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finish(start(folder))


def killed(folder, processes):
    """Start a run and kill it without a warning once it has some answers."""
    process = start(folder, processes=processes)
    deadline = time.monotonic() + 200
    while len(lines(folder)) < 60 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # The launcher puts its workers into sessions of their own.
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in reversed(family):
        one.kill()
    psutil.wait_procs(family, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_and_several_processes_find_the_same(whole, tmp_path, processes):
    folder = tmp_path / "run"
    killed(folder, processes)
    before = len(lines(folder))
    assert 60 <= before < len(lines(whole[0]))
    finish(start(folder, "--resume", processes=processes))
    assert lines(folder) == lines(whole[0])
    assert len(list(folder.glob("answers-*.jsonl"))) == processes
    results = [json.loads((one / "results.json").read_text()) for one in (folder, whole[0])]
    for found in results:
        for case in found["tasks"]["pictures"]["cases"]:
            case.pop("seconds", None)
            case.pop("speed", None)
    assert results[0]["tasks"] == results[1]["tasks"]
    assert results[0]["provenance"]["processes"] == processes


@pytest.mark.slow
def test_the_report(whole):
    folder, printed = whole
    results = json.loads((folder / "results.json").read_text())
    assert results["provenance"]["command"].startswith("vlmcompress eval --methods ")
    task = results["tasks"]["pictures"]
    assert task["scored"] == task["asked"] == 42
    accuracy = {(case["method"], case["budget"]): case.get("accuracy") for case in task["cases"]}
    assert accuracy["full", None] > 0.95
    assert accuracy["text-only", None] < 0.5
    assert accuracy["divprune", "25%"] > accuracy["random", "25%"] + 0.1
    for name in ("report.md", "report.html", "pictures_accuracy_tokens.png"):
        assert (folder / name).stat().st_size > 1000
    assert str(folder / "report.html") in printed
    assert "At 25%" in printed


@pytest.mark.slow
def test_baselines_of_a_run_are_met_by_it_and_not_by_worse_answers(whole, tmp_path, cli_eval):
    file = tmp_path / "baselines.json"
    finish(start(whole[0], "--resume", "--save-baselines", str(file)))
    passed = cli_eval("--check", file, "--device", "cpu")
    assert passed.exit_code == 0, passed.output
    content = json.loads(file.read_text())
    rows = content["models"]["tiny-llava"]["tasks"]["pictures"]
    row = next(row for row in rows if row["method"] == "text-only")
    assert row["scores"].count("1") < 20
    row["scores"] = "1" * 42
    file.write_text(json.dumps(content))
    failed = cli_eval("--check", file, "--device", "cpu")
    assert failed.exit_code == 1
    worse = [line for line in failed.stdout.splitlines() if line.startswith("WORSE")]
    assert len(worse) == 1
    assert "text-only" in worse[0]


@pytest.fixture
def cli_eval():
    from typer.testing import CliRunner

    from vlmcompress.cli import app

    return lambda *arguments: CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.mark.slow
def test_a_short_run_from_the_command_line_writes_its_report(tmp_path, cli_eval):
    """The quickest run that there is, in this process."""
    folder = tmp_path / "run"
    told = ["--methods", "divprune", "--budgets", "25%", "--limit", "7", "--device", "cpu"]
    done = cli_eval(*told, "--out", folder)
    assert done.exit_code == 0, done.output
    (task,) = json.loads((folder / "results.json").read_text())["tasks"].values()
    assert task["asked"] == 7
    assert "divprune" in {case["method"] for case in task["cases"]}
    assert (folder / "report.html").stat().st_size > 1000
