"""Every command that README, docs and `--help` show is run, with fewer questions and rounds."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from raced import profile_of

import vlmcompress
from vlmcompress.calibrate import training_questions
from vlmcompress.cli.ask import ask
from vlmcompress.cli.calibrate import calibrate
from vlmcompress.cli.chat import chat
from vlmcompress.cli.check import check
from vlmcompress.cli.evaluate import evaluate
from vlmcompress.cli.ls import ls, show
from vlmcompress.cli.profile import profile
from vlmcompress.cli.serve import serve
from vlmcompress.cli.tune import tune
from vlmcompress.files import write_json

ROOT = Path(vlmcompress.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (ask, chat, ls, show, calibrate, check, profile, evaluate, serve, tune)
HELP = {command.__name__: command.__doc__ for command in COMMANDS}
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES} | HELP
COMMAND = re.compile(
    r"^ *(?:accelerate launch .*)?\bvlmcompress "
    r"((?:ask|chat|ls|show|calibrate|check|profile|eval|serve|tune) .*)$"
)
QUICK = {"ask", "chat", "ls", "show", "calibrate", "tune"}
SYNOPSIS = re.compile(r"\.\.\.|\[--")
"""Lines that say what may be given, rather than a command."""
ELSEWHERE = dict.fromkeys(
    ["llava-hf/llava-1.5-7b-hf", "my/vlm", "path/to/your/model"], "tiny-llava"
)
ELSEWHERE["Qwen/Qwen2.5-VL-3B-Instruct"] = "tiny-qwen"
"""Models that have to be downloaded; a built-in one stands in."""
SHORTER = {
    "ask": ("--max-new-tokens", "1"),
    "chat": ("--max-new-tokens", "1"),
    "calibrate": ("--limit", "2"),
    "profile": ("--rounds", "1", "--output-tokens", "1"),
    "eval": ("--limit", "1"),
    "tune": ("--samples", "1", "--candidates", "stride,divprune", "--max-new-tokens", "1"),
}
SMALLER = ("--layers", "1", "--encoder-layers", "3")
"""Of a published shape; an option that is given twice counts as it was given last."""
BASELINES = "eval/baselines.json"
"""What `--check` asks again; the one that ships is asked by `make gate`, for minutes."""


def commands(text):
    found = [COMMAND.match(line) for line in text.splitlines()]
    return [
        shlex.split(one[1], comments=True) for one in found if one and not SYNOPSIS.search(one[1])
    ]


def shown(kinds):
    """Commands of some kinds by the text that shows them, in its order."""
    found = {name: [c for c in commands(text) if c[0] in kinds] for name, text in TEXTS.items()}
    return {name: lines for name, lines in found.items() if lines}


def run(cli, command):
    if "contrast" in " ".join(command):
        return  # of a package that tests/test_extending.py installs
    # Every method is evaluated by `make accuracy`; that "all" is understood, by tests/eval.
    stand_ins = {"all": "divprune"} | ELSEWHERE
    command = [stand_ins.get(word, word) for word in command]
    name = command[0]
    shorter = () if "--check" in command else SHORTER.get(name, ())
    if "--random-weights" in command:
        shorter += SMALLER
    if "--limit" in command:
        at = command.index("--limit")
        command[at : at + 2] = []
    if name == "ask" and "--compare" in command:
        command += ["--repeat", "1"]
    if name == "tune":
        Path(command[command.index("--out") + 1]).unlink(missing_ok=True)
    result = cli(*command, *shorter)
    assert result.exit_code == 0, f"{shlex.join(command)}: {result.output} {result.exception}"


@pytest.fixture
def folder(tmp_path, monkeypatch, clip, tiny_llava):
    """A folder with the files that the commands name."""
    for number, name in enumerate(("street.jpg", "a.png", "b.png", "street.png")):
        training_questions(number + 1)[-1].picture.save(tmp_path / name)
    shutil.copy(clip, tmp_path / "clip.mp4")
    row = '{"image": "a.png", "question": "what color is the circle ?", "answer": "red"}\n'
    for name in ("my.jsonl", "mine.jsonl", "asked.jsonl", "questions.jsonl"):
        (tmp_path / name).write_text(row)
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "photos")
    write_json(tmp_path / "mine.json", profile_of(tiny_llava[0], {"25%": "stride"}))
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: mine.jsonl\nmetric: exact\n")
    (tmp_path / "vlmcompress").symlink_to(ROOT / "vlmcompress")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", shown(QUICK))
def test_ask_calibrate_and_ls(cli, loaded, folder, source):
    for command in shown(QUICK)[source]:
        run(cli, command)


@pytest.mark.parametrize("source", shown({"serve"}))
def test_serve(cli, folder, source):
    """They are shown, not run: vLLM has an environment of its own."""
    for command in shown({"serve"})[source]:
        if "--check" not in command:
            end = command.index("--") if "--" in command else len(command)
            command[end:end] = [] if "--print" in command else ["--print"]
            run(cli, command)


@pytest.mark.slow
@pytest.mark.parametrize("source", shown({"profile"}))
def test_profile(cli, loaded, folder, source):
    for command in shown({"profile"})[source]:
        run(cli, command)


@pytest.mark.slow
@pytest.mark.parametrize("source", shown({"check"}))
def test_check(cli, loaded, folder, source):
    for command in shown({"check"})[source]:
        run(cli, command)


@pytest.fixture
def baselines(cli, loaded, folder):
    """The file that `eval --check` is shown with, of few questions."""
    (folder / BASELINES).parent.mkdir()
    few = ("--methods", "divprune", "--budgets", "25%", "--tasks", "pictures", "--limit", "4")
    made = cli("eval", *few, "--out", "made", "--save-baselines", BASELINES)
    assert made.exit_code == 0, made.output


def test_nothing_is_left_out():
    """What the other tests of this file are here for is really shown somewhere."""
    everything = [
        word
        for lines in shown(set(SHORTER) | {"ls", "check"}).values()
        for c in lines
        for word in c
    ]
    assert {"--random-weights", "--check", "--compare", "check", "ls"} <= set(everything)


@pytest.mark.slow
@pytest.mark.parametrize("source", shown({"eval"}))
def test_eval(cli, loaded, folder, baselines, source):
    for command in shown({"eval"})[source]:
        for name in ("results", "clips", "mine"):
            shutil.rmtree(folder / name, ignore_errors=True)
        run(cli, command)


def test_no_profile_line_asks_for_what_its_own_methods_refuse():
    """The full line runs above; this is the mistake that README's first one had."""
    for lines in shown({"profile"}).values():
        for command in lines:
            if "fastv" in " ".join(command) and "tiny-llava" in command:
                budget = command[command.index("--budget") + 1]
                assert vlmcompress.get_method("fastv").schedule(6, 144, float(budget))
