"""Bad input to `vlmcompress ask`: exit code 2, one line on stderr, nothing written."""

import re

import numpy as np
import pytest
from PIL import Image

from vlmcompress.asking import setting
from vlmcompress.asking.asker import Asker
from vlmcompress.cli.ask import media as ask_media
from vlmcompress.cli.ask import request
from vlmcompress.errors import MediaError
from vlmcompress.methods.registry import METHODS
from vlmcompress.patches.families import registry
from vlmcompress.patches.families.table import OUT_OF_SCOPE
from vlmcompress.registry import Registry


@pytest.fixture
def fails(cli, tmp_path):
    """Check that a call is refused with one line that matches `pattern`."""

    def check(pattern, *arguments, code=2):
        before = sorted(tmp_path.rglob("*"))
        result = cli("ask", *arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert re.match(f"error: .*{pattern}", result.stderr), result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.fixture
def damaged(tmp_path, picture):
    """Files that are no good, by what is wrong with them."""
    files = {name: tmp_path / f"{name}.png" for name in ("truncated", "text", "empty", "huge")}
    files["truncated"].write_bytes(picture.read_bytes()[:2000])
    files["text"].write_text("this is no picture")
    files["empty"].touch()
    Image.new("1", (20_000, 20_000)).save(files["huge"])
    return files


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("truncated", r"truncated\.png' is truncated or damaged"),
        ("text", "not an image"),
        ("empty", "empty file"),
        ("huge", "too large: .*limit is 100000000 pixels"),
    ],
)
def test_damaged_image(fails, unloadable, damaged, kind, pattern):
    fails(pattern, damaged[kind], "what ?")


def test_missing_image(fails, unloadable, tmp_path, picture):
    fails(r"none\.png' does not exist", tmp_path / "none.png", "what ?")
    fails(r"none\.png' does not exist", picture, "what ?", "--image", tmp_path / "none.png")
    fails("is a folder", "what ?", "--image", tmp_path)
    fails("no image", "what ?")
    fails("no image", "--question", "what ?")


def test_a_file_of_questions_that_is_not_there(fails, unloadable, tmp_path):
    for name in ("nope.jsonl", "nope.CSV"):
        fails(rf"file of questions '.*{name}' does not exist", tmp_path / name)
        fails(rf"file of questions '.*{name}' does not exist", tmp_path / name, "what ?")


def test_missing_question(fails, unloadable, picture):
    fails("no question", "--image", picture)
    fails(r"no question: the last argument .*picture\.png' is a file", picture)
    fails("the question is empty", picture, "")
    fails("the question is empty", picture, "--question", " \n")


def test_unknown_method_or_option(fails, unloadable, picture):
    ask = (picture, "what ?")
    fails(r"'divprun': did you mean 'divprune'\?", *ask, "--method", "divprun")
    fails(r"'ratoi': did you mean 'ratio'\?", *ask, "--option", "ratoi=0.5")
    fails("not of the form KEY=VALUE", *ask, "--option", "ratio")
    fails("'ratio' is given twice", *ask, "--option", "ratio=0.5", "--option", "ratio=0.6")
    fails("ratio must be above 0 and at most 1", *ask, "--option", "ratio=7")
    fails("cannot read", *ask, "--method", "fastv(k=")
    fails("both act at the projector stage", *ask, "--method", "divprune+random")
    fails("unknown option.*'budget'", *ask, "--option", "budget=3")
    fails("option.*'spec'", *ask, "--option", "spec=3")


def test_unknown_model(fails, unloadable, picture, tmp_path):
    fails(r"'tiny-lava': did you mean 'tiny-llava'\?", picture, "what ?", "--model", "tiny-lava")
    fails("does not exist", picture, "what ?", "--model", tmp_path / "nothing")
    fails(r"has no config\.json", picture, "what ?", "--model", tmp_path)


def test_unknown_dtype_and_device(fails, picture):
    fails(r"did you mean 'float32'\?", picture, "what ?", "--dtype", "float23")
    fails("unknown device 'gpu'", picture, "what ?", "--device", "gpu")


@pytest.mark.parametrize(
    ("budget", "pattern"),
    [
        ("0", "must be above zero"),
        ("-1", "must be above zero"),
        ("many", "not understood"),
        ("", "not understood"),
        ("1.5", "not a whole number"),
        ("150%", "above 100%"),
    ],
)
def test_malformed_budget(fails, unloadable, picture, budget, pattern):
    fails(pattern, picture, "what ?", f"--budget={budget}")


def test_budget_that_cannot_be_met(fails, loaded, picture):
    fails("above the 144 visual tokens", picture, "what ?", "--budget", 145)
    fails("fastv.* 48", picture, "what ?", "--method", "fastv", "--budget", 10)
    fails("takes no budget", picture, "what ?", "--method", "full", "--budget", 10)
    fails(
        r"divprune: with threshold=0\.1 the content decides .*got 25%\) or the threshold",
        *(picture, "what ?", "--method", "divprune(threshold=0.1)", "--budget", "25%"),
    )


def test_overlay_that_cannot_be_written(fails, unloadable, picture, tmp_path):
    ask = (picture, "what ?", "--overlay")
    fails("there is no folder", *ask, tmp_path / "nothing" / "x.png")
    (tmp_path / "folder.png").mkdir()
    fails("it is a folder", *ask, tmp_path / "folder.png")
    fails(r"must end in \.jpeg, \.jpg, \.png, \.webp", *ask, tmp_path / "x.txt")


def test_a_picture_that_fails_half_way_leaves_nothing(
    fails, loaded, picture, tmp_path, monkeypatch
):
    def save(self, path, *args, **kwargs):
        path.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    fails("No space left on device", picture, "what ?", "--overlay", tmp_path / "x.png")


def test_unsupported_architecture(fails, loaded, picture, monkeypatch):
    known = Registry("model family", "vlmcompress.patches.families.family:Family")
    monkeypatch.setattr(registry, "FAMILIES", known)
    monkeypatch.setitem(OUT_OF_SCOPE, "qwen2_5_vl", "it is out of scope")
    fails(
        r"Qwen2_5_VLForConditionalGeneration .*not supported: it is out of scope; .*lists what is$",
        *(picture, "what ?", "--model", "tiny-qwen", "--device", "cpu"),
    )


def test_ctrl_c_is_quiet(cli, loaded, picture, monkeypatch):
    def interrupt(self, setting):
        raise KeyboardInterrupt

    monkeypatch.setattr(Asker, "run", interrupt)
    result = cli("ask", picture, "what ?")
    assert (result.exit_code, result.output) == (130, "")


def test_exception_inside_generate_restores_the_model(
    cli, loaded, picture, tiny_llava, monkeypatch
):
    model, _ = tiny_llava
    cli("ask", picture, "what ?")  # at its first call transformers hooks its towers for good
    hooks = [
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    ]

    def broken(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(model.lm_head), "forward", broken)
    assert isinstance(cli("ask", picture, "what ?").exception, RuntimeError)
    monkeypatch.undo()
    after = [
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    ]
    assert hooks == after


@pytest.mark.parametrize(
    "arguments", [["--max-new-tokens", "0"], ["--repeat", "0"], ["--positions", "x"], ["--no-such"]]
)
def test_usage_errors(cli, unloadable, picture, arguments):
    result = cli("ask", picture, "what ?", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_messages_stay_on_one_line(fails, unloadable, picture, monkeypatch):
    def broken(path):
        raise MediaError("the first line\n  and the second")

    monkeypatch.setattr(ask_media, "read_image", broken)
    fails("the first line and the second$", picture, "what ?")


def test_sixteen_bit_and_palette_images_are_read(cli, loaded, tmp_path):
    Image.fromarray(np.full((96, 96), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("P", (96, 96), 3).save(tmp_path / "palette.png")
    result = cli(
        "ask", tmp_path / "deep.png", tmp_path / "palette.png", "what ?", "--max-new-tokens", 1
    )
    assert result.exit_code == 0, result.stderr


def test_a_question_may_be_longer_than_the_name_of_a_file(cli, loaded, picture):
    """And what is no name at all, because of its zero byte."""
    for question in ("what color is it ? " * 300, "what\0is it ?"):
        result = cli("ask", picture, question, "--max-new-tokens", 1)
        assert result.exit_code == 0, result.exception


@pytest.mark.parametrize("name", [*METHODS.names(), "random+fastv", "tome+divprune+psigmoid"])
def test_the_depth_that_a_method_is_for_is_not_guessed(name):
    """A budget is put in where a method has no setting of its own, at any depth."""
    options = {"embedlens": "(table='tiny-llava')", "var": "(dims=(1, 2))"}.get(name, "")
    needs = {"random", "stride", "pool", "downsample", "tome", "mctf", "expedit", "m3"}
    needs |= {"random+fastv", "tome+divprune+psigmoid"}
    methods, has_default = setting._methods(name + options, {})
    assert methods
    assert has_default == (name not in needs), name


@pytest.mark.parametrize("method", ["adaptinfer(table='qwen2-vl-2b-10')", "fastv(k=40)"])
def test_a_method_for_another_depth_is_refused_by_the_model_that_has_it(
    fails, loaded, picture, method
):
    fails("layers?.*", picture, "what ?", "--method", method)
    checked = request.check(
        request.MediaArguments([str(picture), "what ?"], [], [], None, None, None),
        None,
        method,
        None,
        [],
        None,
    )
    assert checked.setting.budget is None


def test_what_is_empty_or_idle_is_refused(fails, unloadable, picture):
    ask = (picture, "what ?")
    fails("cannot read the method ''", *ask, "--method", "")
    fails("the model has no name", *ask, "--model", "")
    fails("--repeat is for --compare", *ask, "--repeat", 5)


@pytest.mark.parametrize(
    "address", ["https://a.org/x.png", "s3://b/x.png", "data:image/png;base64,"]
)
def test_an_address_is_called_one(fails, unloadable, address):
    fails(f"'{address}' is an address, and nothing is fetched", address, "what ?")
    fails(f"'{address}' is an address, and nothing is fetched", "--image", address, "what ?")


def test_files_are_not_read_from_stdin(fails, unloadable):
    fails("images and videos are not read from stdin", "-", "what ?")


def test_names_for_nothing_and_auto_get_words_that_help(fails, unloadable, picture):
    for name in ("none", "off"):
        fails(f"'{name}': 'full' keeps all visual tokens", picture, "what ?", "--method", name)
    fails("auto chooses methods for all stages", picture, "what ?", "--method", "auto+fastv")
    fails("auto chooses methods for all stages", picture, "what ?", "--method", "auto(k=2)")


def test_what_turns_letters_around_or_moves_the_cursor_is_shown(cli, loaded, tmp_path, picture):
    odd = tmp_path / "a\x1b[31m\u202egnp.png"
    odd.write_bytes(picture.read_bytes())
    for arguments in ((odd, "what ?"), (odd, "what \x1b[2J?"), (f"{odd}.none", "what ?")):
        result = cli("ask", *arguments, "--max-new-tokens", 1)
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        assert r"\x1b[31m\u202egnp" in result.output


@pytest.mark.parametrize("given", ["2 of them", "lots", "0GB"])
def test_a_malformed_limit_of_memory(fails, unloadable, picture, given):
    fails(f"max_memory='{given}' is not possible", picture, "what ?", "--max-memory", given)


def test_a_model_whose_clips_are_not_cut_says_so(fails, loaded, picture):
    fails("max_memory cuts clips between frames", picture, "what ?", "--max-memory", "1GB")
