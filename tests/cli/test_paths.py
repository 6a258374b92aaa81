"""Every option that names a file or a folder knows a quoted `~`, whichever command has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer

from vlmcompress.cli import app
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.tasks import registry
from vlmcompress.methods import get_method

COMMANDS = typer.main.get_command(app).commands
FILE = re.compile(r"\b(file|folder|picture)s?\b", re.IGNORECASE)
NO_FILE = {"model", "tasks", "limit", "seed", "question", "random_weights", "budget", "batch"}
"""Names of models and tasks are told from files later; the others only speak of some."""


def about_files():
    """Options that say so: by a path as their type, by their metavar or by their help."""
    for name, command in COMMANDS.items():
        hints = get_type_hints(command.callback.__wrapped__)
        for option in command.params:
            if not option.opts[0].startswith("-"):
                continue  # a word of the command line: a file or the question
            hint, told = hints.get(option.name), getattr(option, "help", None) or ""
            typed = Path in (hint, *get_args(hint)) or option.metavar in ("FILE", "DIR")
            said = FILE.search(told) and option.name not in NO_FILE
            if typed or (said and not option.is_flag):
                yield name, option


FOUND = {f"{name} {option.name}": (name, option) for name, option in about_files()}
NEEDED = {
    "chat": ["street.png"],
    "check": ["tiny-llava"],
    "calibrate": ["gsearch", "--out", "x.json"],
    "tune": ["--out", "x.json"],
}


def understood(which, given):
    """What a command is told of an option's value."""
    name, option = FOUND[which]
    words = [*NEEDED.get(name, []), option.opts[0], given]
    found = COMMANDS[name].make_context(name, words).params[option.name]
    return found[0] if option.multiple else found


def test_all_of_them_are_found():
    assert set(FOUND) >= {
        *("ask overlay", "ask out", "ask image", "ask video", "check image", "check video"),
        *("calibrate out", "calibrate data", "eval out", "eval check", "eval save_baselines"),
        *("profile as_json", "profile plot", "profile image", "profile video"),
    }


@pytest.mark.parametrize("which", FOUND)
def test_a_quoted_tilde_is_the_home_folder(which, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/a/b.json", "plain.json", "/~/c"):
        assert str(understood(which, given)) == given.replace("~/a", f"{tmp_path}/a")


def test_a_user_that_is_not_known_is_part_of_the_name():
    assert understood("ask overlay", "~nobody-here/x.png") == Path("~nobody-here/x.png")


def test_a_url_keeps_its_slashes():
    assert understood("check image", "https://a.b/c.png") == "https://a.b/c.png"


def test_files_are_written_there(cli, loaded, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = cli("ask", "~/picture.png", "what ?", "--overlay", "~/kept.png", "--max-new-tokens", "1")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "kept.png").is_file()


def test_names_within_other_options(tmp_path, monkeypatch):
    """Tables of methods and files of tasks."""
    monkeypatch.setenv("HOME", str(tmp_path))
    home = re.escape(str(tmp_path))
    with pytest.raises(VLMCompressError, match=rf"{home}/x.jsonl"):
        registry.load_tasks(["~/x.jsonl"])
    (tmp_path / "table.json").write_text("[]")
    for name in ("adaptinfer", "psigmoid", "embedlens"):
        with pytest.raises(VLMCompressError) as caught:
            get_method(name, table="~/table.json")
        assert "readable file" not in str(caught.value)
        with pytest.raises(VLMCompressError, match="readable file"):
            get_method(name, table="~/nothing.json")
