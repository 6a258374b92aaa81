"""`vlmcompress ls`."""

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.cli import app
from vlmcompress.errors import BudgetError


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
        assert "options: threshold=None, ratio=0.098" in narrow
        assert "paper: arXiv 2503.02175" in narrow


def test_methods_of_a_stage_and_of_a_family(cli):
    def names(*more):
        result = cli("ls", "methods", "--json", *more)
        assert result.exit_code == 0, result.stderr
        return {entry["name"] for entry in json.loads(result.stdout)}

    assert "fastv" in names("--stage", "decoder")
    assert not names("--stage", "decoder") & {"divprune", "tome", "downsample"}
    assert {"downsample", "pixelprune"} <= names("--stage", "pixels")
    families = {name: names("--family", name) for name in ("llava", "qwen2_5_vl", "paligemma")}
    assert "pixelprune" not in families["llava"]
    assert "pixelprune" in families["qwen2_5_vl"]
    assert "hiprune" in families["llava"]
    assert "divprune" in families["paligemma"]
    assert "divprune" not in names("--family", "llava", "--stage", "encoder")
    assert names("--family", "llava", "--stage", "encoder") >= {"tome", "unit-drop"}
    # Some towers let no method in.
    assert "tome" in families["paligemma"]  # at the projector
    assert names("--family", "paligemma", "--stage", "encoder") == set()
    inside = {"tome", "pitome", "mctf", "unit-drop"}
    assert names("--family", "qwen2_5_vl", "--stage", "encoder") == inside


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("unknown family 'lava': did you mean 'llava'", ["ls", "methods", "--family", "lava"]),
        ("emu3 is refused", ["ls", "methods", "--family", "emu3"]),
        ("--stage and --family are for methods", ["ls", "models", "--stage", "decoder"]),
        ("unknown method 'divprun': did you mean 'divprune'", ["show", "divprun"]),
    ],
)
def test_what_cannot_be_listed(cli, words, arguments):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_family_gets_just_the_methods_that_its_models_take(cli, tiny_llava):
    """By trying: every other method is refused by a model of the family."""
    found = json.loads(cli("ls", "methods", "--family", "llava", "--json").stdout)
    fits = {entry["name"] for entry in found}
    for info in vlmcompress.list_methods():
        spec = {"embedlens": "embedlens(table='tiny-llava')", "var": "var(dims=(1, 2))"}
        try:
            handle = vlmcompress.compress(
                tiny_llava[0], spec.get(info.name, info.name), "60%", processor=tiny_llava[1]
            )
        except vlmcompress.VLMCompressError as error:
            took = isinstance(error, BudgetError)  # the method, not the model, refuses
        else:
            handle.remove()
            took = True
        assert took == (info.name in fits), info.name


def test_one_method(cli):
    text = cli("show", "fastv").stdout
    assert text.startswith("fastv: drops what the last token attends to least")
    for part in ("stage: decoder", "options: k=2, ratio=0.5", "arXiv 2403.06764", "Deviations"):
        assert part in text
    found = json.loads(cli("show", "fastv", "--json").stdout)
    assert found["options"] == {"k": 2, "ratio": 0.5}
    assert found["about"] in text


@pytest.mark.parametrize(
    ("name", "words"), [("auto", "the most accurate"), ("aim", "stands for aim-merge+aim-prune")]
)
def test_names_that_stand_for_several_methods(cli, name, words):
    assert words in cli("show", name).stdout
    assert words in json.loads(cli("show", name, "--json").stdout)["summary"]


def test_names_are_completed():
    from vlmcompress.cli import complete

    assert complete.methods("divp") == ["divprune"]
    assert complete.methods("divprune+pyr") == ["divprune+pyramiddrop"]
    assert complete.method_lists("divprune,random+pyr") == ["divprune,random+pyramiddrop"]
    assert complete.models("tiny-q") == ["tiny-qwen"]
    assert complete.families("qwen2_5") == ["qwen2_5_vl", "qwen2_5_omni_thinker"]
    assert complete.tasks("clips,pictures/cou") == ["clips,pictures/count"]


def test_the_shell_is_told_names(monkeypatch):
    """The way that a shell asks."""
    result = CliRunner().invoke(
        app,
        env={
            "_VLMCOMPRESS_COMPLETE": "complete_bash",
            "COMP_WORDS": "vlmcompress ask a.png --method divp",
            "COMP_CWORD": "4",
        },
        prog_name="vlmcompress",
    )
    assert result.stdout.split() == ["divprune"]


@pytest.mark.parametrize("name", ["ask", "chat", "ls", "show", "check", "eval", "profile"])
def test_every_command_has_the_short_help(cli, name):
    assert cli(name, "-h").stdout == cli(name, "--help").stdout


def test_a_retriever_is_a_family_whose_methods_can_be_listed(cli):
    """By trying: every other method is refused by a model of the family."""
    listed = cli("ls", "methods", "--family", "colqwen2", "--json")
    assert listed.exit_code == 0, listed.stderr
    fits = {entry["name"] for entry in json.loads(listed.stdout)}
    model, processor = vlmcompress.load("tiny-colqwen", device="cpu", dtype="float32")
    tried = {"divprune", "fastv", "hiprune", "visionzip", "pixelprune", "unit-drop"}
    took = set()
    for name in tried:
        with contextlib.suppress(vlmcompress.VLMCompressError):
            vlmcompress.compress(model, name, "60%", processor=processor).remove()
            took.add(name)
    assert took == fits & tried
    assert "divprune" in took
    assert "pixelprune" not in took
