"""`vlmcompress chat`: a conversation on stdin."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.asking.chat import Chat
from vlmcompress.cli import app

STREET = Path(vlmcompress.__file__).parent / "assets" / "samples" / "street.png"
QUESTIONS = ("what color is the circle ?", "how many stars are there ?")
SHORT = ("--max-new-tokens", "4", "--device", "cpu", "--dtype", "float32")


def chat(lines, *arguments):
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(app, ["chat", *map(str, arguments), *SHORT], input=text)


@pytest.mark.parametrize("more", [(), ("--reselect",)])
def test_answers_are_those_of_the_python_interface(loaded, tiny_qwen, more):
    result = chat([QUESTIONS[0], "", QUESTIONS[1]], STREET, "--model", "tiny-qwen", *more)
    assert result.exit_code == 0, result.output
    with Chat(*tiny_qwen, STREET, reselect=bool(more), max_new_tokens=4) as by_hand:
        assert result.stdout.splitlines() == [by_hand.ask(q).answer for q in QUESTIONS]
    assert "tiny-qwen, divprune at 25%; /help" in result.stderr
    assert result.stderr.count("encoder 0 ms") == (2 if more else 1)
    with pytest.raises(vlmcompress.VLMCompressError, match="not compressed"):
        vlmcompress.Compression.of(tiny_qwen[0])


def test_the_commands(loaded, tmp_path):
    picture = tmp_path / "kept.png"
    lines = [
        *("/compare", f"/overlay {picture}", QUESTIONS[0], "/method stride 36", QUESTIONS[1]),
        *("/budget 18", "/compare fastv", f"/overlay {picture}", "/history", "/reset", "/history"),
        *("/method nothing", "/budget", "/nope", "/", "/help", "/quit", "never asked"),
    ]
    result = chat(lines, STREET)
    assert result.exit_code == 0, result.output
    out, err = result.stdout, result.stderr
    assert Image.open(picture).width == 480
    assert "1. what color is the circle ?" in out
    assert "(divprune at 25%)" in out
    assert "(stride at 36)" in out
    assert out.count("\n2. ") == 1  # the history after /reset is empty
    assert "stride at 18" in out
    assert "fastv at 18" in out  # refused, and told as a row of the comparison
    assert "never asked" not in out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line[7:30] for line in errors] == [
        *("nothing was asked yet, ", "nothing was asked yet, ", "unknown method 'nothing"),
        *("give a budget: /budget ", "unknown command 'nope':"),
        "unknown command '': kno",
    ]


def test_an_interrupted_answer_does_not_end_the_conversation(loaded, monkeypatch):
    plain, calls = Chat.ask, []

    def ask(self, question):
        calls.append(question)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return plain(self, question)

    monkeypatch.setattr(Chat, "ask", ask)
    result = chat(QUESTIONS, STREET)
    assert result.exit_code == 0
    assert "stopped" in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_quiet_leaves_answers_and_errors(loaded):
    result = chat([QUESTIONS[0], "/nope"], STREET, "--quiet")
    assert len(result.stdout.splitlines()) == 1
    assert [line[:6] for line in result.stderr.splitlines()] == ["error:"]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("gone.png' does not exist", ["gone.png"]),
        ("unknown method 'x'", [STREET, "--method", "x"]),
        ("unknown model", [STREET, "--model", "x"]),
        ("the model has no name", [STREET, "--model", ""]),
        ("--frames and --fps are for videos", [STREET, "--frames", 3]),
        ("Missing argument", []),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(unloadable, words, arguments):
    result = chat([], *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("name", ["reset", "history", "help"])
def test_commands_that_take_no_words_refuse_them(loaded, name):
    result = chat([f"/{name} 2 now", "/history"], STREET)
    assert result.stdout == ""
    assert result.stderr.endswith(f"error: /{name} takes nothing behind it, got '2 now'\n")


def test_options_of_the_method_reach_it(loaded):
    result = chat([QUESTIONS[0]], STREET, "--method", "divprune", "--option", "ratio=0.5")
    assert "144 -> 72 tokens" in result.stderr
