"""The entry point of the script: exit codes, and wrong usage in one line."""

import time

import pytest
import typer

from vlmcompress import cli
from vlmcompress.version import __version__


@pytest.fixture
def script(monkeypatch, capsys):
    """Run `vlmcompress` with some arguments; gives exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vlmcompress", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "bogus"),
        (["ask", "a.png", "what ?", "--bogus"], "--bogus"),
        (["ask", "a.png", "what ?", "--repeat", "0"], "--repeat"),
        (["ls", "model"], "'methods', 'models'"),
        (["ask", "a.png", "what ?", "--positions", "x"], "'--positions': 'x' is not one of"),
        (["ls"], "what"),
        (["ask"], "no question"),
        (["ask", "a.png", "what ?"], "a.png"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, arguments, words):
    code, out, err = script(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_success_is_exit_code_0(script):
    assert script("--version") == (0, f"vlmcompress {__version__}\n", "")
    code, out, err = script("ls", "methods")
    assert (code, err) == (0, "")
    assert "divprune" in out


def test_no_arguments_show_the_help(script):
    code, out, _ = script()
    assert code == 0
    assert "ask" in out
    assert "Usage" in out


def test_the_list_of_commands_says_whole_what_each_does(script):
    _, out, _ = script("--help")
    listed = " ".join(out.split("Commands:")[1].split())
    assert "..." not in listed
    for words in ("on fewer visual tokens.", "write a profile.", "baselines, with a report."):
        assert words in listed


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_is_quiet(script, monkeypatch, stop):
    def interrupted(*args, **kwargs):
        raise stop

    monkeypatch.setattr(cli, "app", interrupted)
    assert script("ls", "methods") == (130, "", "")


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_hushes_notes_spinners_and_bars(capsys, monkeypatch, quiet):
    """What all commands say on stderr comes through these three."""
    from vlmcompress.cli import common, progress_bar

    monkeypatch.setattr(progress_bar, "EVERY", 0.0)
    monkeypatch.setattr(common, "EVERY", 0.0)
    common.hush(quiet)
    try:
        common.tell(["a note"])
        with common.progress("working"):
            time.sleep(0.2)
        with progress_bar.Advance(2) as advance:
            time.sleep(0.01)
            advance(1, "half")
    finally:
        common.hush(False)
    said = capsys.readouterr().err
    assert [word in said for word in ("a note", "working", "half")] == [not quiet] * 3
