"""Wherever a method can be named a profile can be given, and a limit of memory where clips go."""

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from raced import profile_of
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.cli import app
from vlmcompress.demo import launch
from vlmcompress.demo.answers import DemoModel
from vlmcompress.eval.harnesses.harness import HarnessSettings
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.run.evaluate import Evaluation, Plan
from vlmcompress.files import write_json
from vlmcompress.patches.encoder.streaming import Streaming

STREET = Path(vlmcompress.__file__).parent / "assets" / "samples" / "street.png"
FEW = ("--tasks", "pictures/color", "--limit", "1")
QUICK = ("--rounds", "1", "--output-tokens", "1")
COMMANDS = {
    "ask": ("ask", STREET, "what ?", "--max-new-tokens", "2"),
    "ask --compare": ("ask", STREET, "what ?", "--compare", "--max-new-tokens", "2"),
    "ask a folder": ("ask", "photos", "what ?", "--max-new-tokens", "2"),
    "chat": ("chat", STREET, "--max-new-tokens", "2"),
    "demo": ("demo", "--model", "tiny-llava"),
    "eval": ("eval", *FEW, "--out", "run"),
    "profile": ("profile", STREET, *QUICK),
    "serve": ("serve", "tiny-llava", "--print"),
}
SERVED_BY_VLLM = {"serve"}
"""Whose encoder is vLLM's own."""


@pytest.fixture
def run(monkeypatch, loaded, tmp_path, tiny_llava):
    """Run a command where there are a folder `photos` and profiles."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.open(STREET).save(tmp_path / "photos" / "a.png")
    write_json(tmp_path / "mine.json", profile_of(tiny_llava[0], {"25%": "scope"}))
    (tmp_path / "half.json").write_text((tmp_path / "mine.json").read_text()[:90])
    page = SimpleNamespace(local_url="http://here", block_thread=lambda: None)
    monkeypatch.setattr(launch, "check_gradio", lambda: None)
    monkeypatch.setattr(launch, "launch", lambda *given, **more: page)
    return lambda *words: CliRunner().invoke(app, list(map(str, words)), input="what ?\n")


def refusal(result):
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def parameters(call):
    return set(inspect.signature(call).parameters)


def test_every_command_that_names_a_method_takes_a_profile_and_a_limit():
    commands = {one.name or one.callback.__name__: one.callback for one in app.registered_commands}
    named = {
        name
        for name, call in commands.items()
        if parameters(call) & {"method", "methods"} and name != "show"
    }
    assert named | {"demo"} == {name.split()[0] for name in COMMANDS}
    for name in named | {"demo"}:
        assert "profile" in parameters(commands[name]), name
        assert ("max_memory" in parameters(commands[name])) == (name not in SERVED_BY_VLLM), name


def test_every_call_that_names_a_method_takes_a_profile_and_a_limit():
    pages = {"embed"}  # of models that answer nothing, which cannot be tuned
    calls = {name: getattr(vlmcompress, name) for name in vlmcompress.__all__}
    named = {
        name: call
        for name, call in calls.items()
        if inspect.isfunction(call) or name == "Chat"
        if parameters(call) & {"method", "methods"}
    }
    assert {"ask", "compare", "compress", "Chat"} <= set(named)
    for name, call in named.items():
        if name not in pages:
            assert {"profile", "max_memory"} <= parameters(call), name
    assert {"profile", "max_memory"} <= parameters(DemoModel) & parameters(HarnessSettings)


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"demo", "eval"}))
def test_every_command_takes_what_the_profile_says(run, command):
    result = run(*COMMANDS[command], "--profile", "mine.json", *budget(command, "25%"))
    assert result.exit_code == 0, result.output
    assert "tuned at 25%: scope says what the whole model says" in " ".join(result.output.split())
    assert "divprune" not in result.output


def test_the_page_gets_a_model_that_knows_the_profile(run, monkeypatch):
    served = []
    page = launch.launch
    monkeypatch.setattr(
        launch, "launch", lambda model, *given, **more: (served.append(model), page(model))[1]
    )
    assert run(*COMMANDS["demo"], "--profile", "mine.json").exit_code == 0
    assert run(*COMMANDS["demo"]).exit_code == 0
    assert ["auto" in model.methods for model in served] == [True, False]


def budget(command, text):
    """The page has a slider for it, and `eval` asks at several."""
    return {"demo": (), "eval": ("--budgets", text)}.get(command, ("--budget", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_alike(run, command, loaded):
    words = (*COMMANDS[command], *budget(command, "25%"))
    assert refusal(run(*words, "--profile", "none.json")) == (
        "error: cannot read profile 'none.json': No such file or directory\n"
    )
    assert refusal(run(*words, "--profile", "half.json")).startswith(
        "error: profile 'half.json' is not JSON"
    )
    assert not loaded, "a model was loaded before"
    other = {"demo": words[:1], "serve": ("serve", "tiny-qwen", "--print")}.get(command, words)
    other = (*other, "--model", "tiny-qwen") if command != "serve" else other
    assert refusal(run(*other, "--profile", "mine.json")) == (
        "error: profile 'mine.json' is of another model, tiny-llava: type llava there, qwen2_5_vl "
        "here\n"
    )


ONE_METHOD = ("ask", "ask --compare", "ask a folder", "chat", "serve")


@pytest.mark.parametrize("command", ONE_METHOD)
def test_a_method_beside_a_profile_is_refused(run, command):
    words = (*COMMANDS[command], *budget(command, "25%"), "--profile", "mine.json")
    assert refusal(run(*words, "--method", "divprune")) == (
        'error: a profile chooses the method: give it with "auto", not divprune\n'
    )


@pytest.mark.parametrize("command", ["ask", "chat", "profile", "serve"])
def test_a_budget_that_cannot_be_compared_is_refused(run, command):
    words = (*COMMANDS[command], "--budget", "0.4 flops", "--profile", "mine.json")
    assert refusal(run(*words)) == (
        "error: budget 0.4 flops cannot be compared with those of profile 'mine.json': give one of "
        "25%\n"
    )


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SERVED_BY_VLLM])
def test_a_limit_of_memory_is_refused_where_clips_cannot_be_cut(run, command):
    words = (*COMMANDS[command], "--max-memory")
    assert refusal(run(*words, "much")) == (
        "error: max_memory='much' is not possible: give bytes, or a text such as '2GB' or "
        "'500MiB'\n"
    )
    assert refusal(run(*words, "1GB")).endswith(
        "max_memory cuts clips between frames, and frames of llava models are not known to "
        "be encoded each by itself: leave it out\n"
    )


@pytest.mark.parametrize("command", ["ask", "ask --compare", "profile"])
def test_a_limit_holds_for_all_tokens_too(run, clip, command, monkeypatch):
    words = [clip if word == STREET else word for word in COMMANDS[command]]
    assert re.fullmatch(
        r"error: max_memory is 1 B, and encoding one frame takes [\d.]+ KB: give at least that\n",
        refusal(run(*words, "--max-memory", "1B")),
    )
    said, say = [], Streaming._say
    monkeypatch.setattr(
        Streaming, "_say", lambda own, *given: (said.append(given), say(own, *given))[1]
    )
    result = run(*words, "--max-memory", "1GB")
    assert result.exit_code == 0, result.output
    # Each of the settings in turn, all tokens among them, and none with `profile`.
    runs = {"ask": 1, "ask --compare": 8, "profile": 9}[command]
    assert len(said) == runs
    if command == "profile":
        assert "clips encoded in pieces of 1GB at most" in result.stdout


def test_profile_measures_what_the_profile_takes_once(run):
    words = (*COMMANDS["profile"], "--profile", "mine.json", "--json", "-")
    result = run(*words, "--method", "auto,scope,divprune", "--budgets", "25%,24%")
    rows = json.loads(result.stdout)["rows"]
    assert [(row["label"], row["budget"]) for row in rows[2:]] == [
        ("scope", "25%"),
        ("scope", "24%"),
        ("divprune", "25%"),
        ("divprune", "24%"),
    ]
    assert "note: tuned at 25%: scope says what the whole model says" in result.stderr
    assert "tuned at 25%, the nearest to 24% in the profile: scope" in result.stderr


@pytest.mark.parametrize("profile", [None, "mine.json"])
def test_auto_of_eval_is_what_the_profile_takes(run, profile):
    plan = Plan("tiny-llava", ["auto"], ["25%"], ["pictures/color"], 1, profile=profile)
    (job,) = Evaluation(plan).jobs
    asked = {case.method for case in job.cases}
    assert ("auto" in asked) == (profile is None)
    assert (Case("scope", "25%") in job.cases) == (profile is not None)


def test_a_chat_takes_its_profile_whenever_auto_is_asked_for(monkeypatch, run):
    lines = "what ?\n/method divprune 50%\n/method auto 25%\nwhat ?\n/compare auto\n/history\n"
    given = ("chat", STREET, "--profile", "mine.json", "--max-new-tokens", "2")
    seen = []
    ask = vlmcompress.Chat.ask
    monkeypatch.setattr(
        vlmcompress.Chat, "ask", lambda own, q: (seen.append(ask(own, q)), seen[-1])[1]
    )
    result = CliRunner().invoke(app, list(map(str, given)), input=lines)
    assert result.exit_code == 0, result.output
    assert [one.report.method for one in seen] == ["auto: scope", "auto: scope"]
    assert "error" not in result.stderr
