"""Every code block of README, docs and CONTRIBUTING runs, or is read as what it is."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
import yaml

import vlmcompress
from dev.pages.pictures.kept import SCENE
from vlmcompress.cli import app
from vlmcompress.eval.metrics import METRICS
from vlmcompress.media.images import read_image

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(vlmcompress.__file__).parents[1]
PAGES_FOR_OTHERS = {"upstream.md"}
"""Issues for another project, with its code."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
STAND_INS = {"Qwen/Qwen2.5-VL-3B-Instruct": "tiny-qwen", "llava-hf/llava-1.5-7b-hf": "tiny-llava"}
QUICK = {"README.md", "migrating.md", "concepts.md"}
"""Pages whose blocks run by default; the others do with --full."""
ELSEWHERE = {
    "extending.md": "tests/test_extending.py installs and uses the package",
    "flops.md": "tests/flops/test_flops_page.py compares what it prints",
    "serving.md": "tests/vllm_engine runs an engine in an environment of its own",
    "upstream.md": "it is code of vLLM",
}
OTHERS = {
    "pip": "the wheel test and `make test-lmms-eval` install",
    "lmms-eval": "tests/lmms runs it in an environment of its own",
    "accelerate": "tests/eval runs several processes",
    "curl": "tests/vllm_engine asks a server over HTTP",
}
"""Programs that shell lines start with, and where they are run."""


def blocks():
    """Page, place, language and text of every block."""
    for page in (page for page in PAGES if page.name not in PAGES_FOR_OTHERS):
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8"))):
            yield page.name, number, found[1], found[2]


def python_blocks():
    for page, number, language, text in blocks():
        if language == "python" and page not in ELSEWHERE:
            marks = () if page in QUICK else pytest.mark.slow
            yield pytest.param(text, id=f"{page}-{number}", marks=marks)


def shell_lines():
    """Commands of shell blocks, those that go over several lines joined."""
    for page, _, language, text in blocks():
        given = ""
        for line in text.splitlines() if language in ("", "bash") else ():
            given = f"{given.removesuffix(chr(92))}{line}"
            try:
                words = shlex.split(given, comments=True)
            except ValueError:  # a quotation goes on in the next line
                given += "\n"
                continue
            if given.endswith("\\"):
                continue
            given = ""
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield page, words
        assert not given, f"{page}: a command does not end: {given}"


@pytest.mark.parametrize("code", list(python_blocks()))
def test_python_runs(code, monkeypatch, tmp_path, capsys, tiny_llava, tiny_qwen):
    """In a folder with the files that the blocks name; checkpoints are built-in models."""
    load, loaded = vlmcompress.load, {"tiny-llava": tiny_llava, "tiny-qwen": tiny_qwen}
    for name, stand_in in STAND_INS.items():
        code = code.replace(name, stand_in)
    read_image(SCENE).save(tmp_path / "street.jpg")
    (tmp_path / "photos").mkdir()
    read_image(SCENE).save(tmp_path / "photos" / "street.jpg")
    (tmp_path / "vlmcompress").symlink_to(ROOT / "vlmcompress")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vlmcompress, "load", lambda name: loaded.get(name) or load(name))
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))  # one registers its own
    exec(compile(code, "block", "exec"), {"__name__": "block"})
    printed = capsys.readouterr().out
    assert printed.strip() or "print" not in code
    if "report" in code and "check" not in code:
        assert re.search(r"\d+ -> \d+ tokens|^\[.*\] \d+ tokens", printed), printed


def test_the_block_of_the_readme_keeps_a_quarter(monkeypatch, tmp_path, capsys, tiny_qwen):
    (code,) = (text for page, _, kind, text in blocks() if (page, kind) == ("README.md", "python"))
    assert set(STAND_INS) & set(re.findall(r'"([^"]+)"', code)), "a real checkpoint's name"
    read_image(SCENE).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vlmcompress, "load", lambda name: tiny_qwen)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.match(r"\w+ .*36 -> 9 tokens", printed, re.DOTALL), "an answer and the report"


def test_data_can_be_read():
    found = set()
    for page, _, language, text in blocks():
        found.add(language)
        if language == "json":
            assert json.loads(text)
        elif language == "yaml":
            assert yaml.safe_load(text)
        elif language == "toml" and sys.version_info >= (3, 11):
            assert tomllib.loads(text)
        else:
            known = {"", "bash", "python", "toml", "text", "{toctree}", "{include}"}
            assert language in known, f"{page}: nothing tests blocks of {language!r}"
    assert {"", "bash", "python", "json", "yaml", "toml"} <= found


def test_shell_lines_name_what_exists():
    """Those of `vlmcompress` are run by tests/cli/test_documented_commands.py; here, options."""
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = typer.main.get_command(app).commands
    seen = set()
    for page, words in shell_lines():
        program, name = words[0], words[1] if len(words) > 1 else ""
        words = words[: words.index("--")] if "--" in words else words  # of another program
        seen.add(program)
        if program == "vlmcompress":
            known = {flag for parameter in commands[name].params for flag in parameter.opts}
            own = words[2 : words.index("--")] if "--" in words else words[2:]
            used = {word.strip("[]").split("=")[0] for word in own}
            used = {word for word in used if word.startswith("--")}
            assert used <= known, f"{page}: {shlex.join(words)}"
        elif program == "make":
            assert name in targets, f"{page}: {shlex.join(words)}"
        elif program == "python":
            assert name == "-m", f"{page}: {shlex.join(words)}"
            assert importlib.util.find_spec(words[2]), f"{page}: {words[2]}"
        elif (ROOT / program).is_file():
            continue
        else:
            assert program in OTHERS, f"{page}: nothing tests {shlex.join(words)!r}"
    assert {"vlmcompress", "make", "python", "pip"} <= seen
