"""`vlmcompress ls`."""

import json
from pathlib import Path

import pytest

import vlmcompress


def test_methods(cli):
    found = json.loads(cli("ls", "methods", "--json").stdout)
    assert [entry["name"] for entry in found] == [info.name for info in vlmcompress.list_methods()]
    fastv = next(entry for entry in found if entry["name"] == "fastv")
    assert fastv["stages"] == ["decoder"]
    assert fastv["options"] == {"k": 2, "ratio": 0.5}
    text = cli("ls", "methods").stdout
    for entry in found:
        line = next(line for line in text.splitlines() if line.split()[0] == entry["name"])
        assert entry["summary"] in line
        assert entry["paper"] in line


def test_models(cli):
    found = json.loads(cli("ls", "models", "--json").stdout)
    tiny = next(entry for entry in found["built_in"] if entry["name"] == "tiny-llava")
    assert (Path(tiny["folder"]) / "config.json").is_file()
    llava = next(entry for entry in found["families"] if entry["name"] == "llava")
    assert llava["classes"] == ["LlavaForConditionalGeneration"]
    assert llava["stages"] == ["encoder", "projector", "decoder"]
    text = cli("ls", "models").stdout
    assert "tiny-llava" in text
    assert "LlavaForConditionalGeneration" in text


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "nothing"], ["nothing"]])
def test_usage_errors(cli, arguments):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_version(cli):
    assert cli("--version").stdout == f"vlmcompress {vlmcompress.__version__}\n"


@pytest.mark.parametrize("what", ["methods", "models"])
@pytest.mark.parametrize("columns", ["80", "60"])
def test_a_narrow_terminal_gets_all_of_it_below_each_other(cli, monkeypatch, what, columns):
    wide = cli("ls", what).stdout
    monkeypatch.setenv("COLUMNS", columns)
    narrow = cli("ls", what).stdout
    assert max(map(len, wide.splitlines())) > 80
    lines = [line for line in narrow.splitlines() if "/" not in line]  # folders are not cut
    assert max(map(len, lines)) <= int(columns)
    for word in ("divprune", "fastv") if what == "methods" else ("llava_next", "gemma3"):
        assert any(line.startswith(f"{word}  (") for line in narrow.splitlines())
    if what == "methods":
        assert "options: ratio=0.098" in narrow
        assert "paper: arXiv 2503.02175" in narrow
