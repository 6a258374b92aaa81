"""What the page shows, without a browser and without gradio."""

import sys

import numpy as np
import pytest
from PIL import Image
from raced import profile_of
from typer.testing import CliRunner

from vlmcompress.cli import app
from vlmcompress.demo import media as module
from vlmcompress.demo.answers import DemoModel, changed, escaped, panels
from vlmcompress.demo.media import preview, read, samples
from vlmcompress.demo.settings import PageSettings
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import write_json

QUESTION = "what color is the circle ?"


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return DemoModel(*tiny_llava, "tiny-llava")


@pytest.fixture(scope="module")
def street():
    return read(None, "street.png", False)


def test_panels_of_a_comparison_and_of_a_layer(llava, street):
    found = llava.compare(street, QUESTION, ["divprune", "fastv"], "50%")
    shown = panels(found, None)
    assert [one.name for one in shown] == ["full", "divprune at 50%", "fastv at 50%"]
    assert "72 of 144 tokens, mean over layers 72" in shown[1].text
    assert "144 of 144 tokens, mean over layers 72" in shown[2].text
    assert "| prefill |" in shown[1].text
    last = panels(found, llava.layers - 1)
    assert np.asarray(last[2].picture)[:480].mean() < np.asarray(shown[2].picture)[:480].mean()
    assert changed(found).startswith("**What changed:** ")


def test_a_refused_method_is_told_and_the_others_answer(llava, street):
    found = llava.compare(street, QUESTION, ["divprune", "fastv"], "9%")
    assert len(panels(found, None)) == 2
    assert "**fastv at 9%** is refused: " in changed(found)


def test_a_profile_adds_what_it_takes(tiny_llava, tiny_qwen, llava, street, tmp_path):
    path = tmp_path / "mine.json"
    write_json(path, profile_of(tiny_llava[0], {"25%": "stride"}))
    tuned = DemoModel(*tiny_llava, "tiny-llava", profile=path)
    assert tuned.methods == ("auto", *llava.methods)
    first = PageSettings.from_address({}, {"a.png": "what ?"}, tuned.methods)
    assert first.methods == ("auto", "divprune", "fastv")
    found = tuned.compare(street, QUESTION, ["auto", "divprune"], "50%")
    assert [one.report.method for one in found] == ["full", "auto: stride", "divprune"]
    shown = panels(found, None)
    assert escaped("tuned at 25%, the nearest to 50% in the profile: stride") in shown[1].text
    assert "tuned" not in shown[0].text + shown[2].text
    with pytest.raises(VLMCompressError, match="is of another model, tiny-llava"):
        DemoModel(*tiny_qwen, "tiny-qwen", profile=path)


@pytest.mark.slow
def test_the_gallery_has_all_that_can_and_says_how_far_it_is(llava, street):
    steps = []
    shown = list(llava.gallery(street, QUESTION, "50%", lambda share, name: steps.append(share)))
    assert len(shown) > 25
    assert steps == sorted(steps)
    assert any(caption.startswith("divprune: ") for _, caption in shown)
    assert not any(caption.startswith(("full", "text-only")) for _, caption in shown)


@pytest.mark.parametrize(
    ("words", "question", "methods"),
    [
        ("ask a question first", " ", ["divprune"]),
        ("500 letters at most", "x" * 501, ["divprune"]),
        ("choose 3 methods at most", QUESTION, ["divprune"] * 4),
        ("unknown method 'x'", QUESTION, ["x"]),
    ],
)
def test_what_is_refused(llava, street, words, question, methods):
    with pytest.raises(VLMCompressError, match=words):
        llava.compare(street, question, methods, "50%")


def test_samples_and_their_preview():
    assert set(samples(False)) < set(samples(True))
    assert set(samples(False, "small-llava")).isdisjoint(samples(True))
    for name in samples(False, "small-llava"):
        assert preview(read(None, name, False, "small-llava")).size == (192, 192)
    clip = read(None, "runway.mp4", True)
    assert preview(clip).width > 4 * 90
    with pytest.raises(VLMCompressError, match="this model takes pictures only"):
        module._read(samples(True)["runway.mp4"].file, False)
    with pytest.raises(VLMCompressError, match=r"unknown sample '\.\./street\.png'"):
        read(None, "../street.png", True)
    with pytest.raises(VLMCompressError, match="choose a picture or a clip first"):
        read(None, None, True)


def test_uploads_have_limits_and_errors_name_no_folder(tmp_path, monkeypatch):
    folder = tmp_path / "secret"
    folder.mkdir()
    wrong, large, wide = (folder / name for name in ("a.png", "b.png", "c.png"))
    wrong.write_text("no picture")
    Image.new("RGB", (64, 64)).save(wide)
    large.write_bytes(b"x" * 2000)
    monkeypatch.setattr(module, "MAX_UPLOAD", 1000)
    monkeypatch.setattr(module, "MAX_PIXELS", 64 * 63)
    gone, secret = folder / "gone.png", "secret"
    for file, words in (
        (wrong, "'a.png' is not an image"),
        (large, "'b.png' is larger than"),
        (wide, "'c.png' is too large"),
        (gone, "'gone.png' does not exist"),
    ):
        with pytest.raises(VLMCompressError, match=words) as error:
            read(str(file), None, True)
        assert secret not in str(error.value)


def test_the_address_says_what_was_chosen_and_nothing_else():
    known, methods = {"a.png": "what ?", "b.png": "how ?"}, ("divprune", "fastv", "stride")
    first = PageSettings.from_address({}, known, methods)
    assert first == PageSettings("a.png", "what ?", ("divprune", "fastv"), 50)
    query = {"sample": "b.png", "question": "why ?", "methods": "stride,divprune+fastv"}
    found = PageSettings.from_address({**query, "budget": "25"}, known, methods)
    assert found == PageSettings("b.png", "why ?", ("stride", "divprune+fastv"), 25)
    for wrong in (
        {"sample": "../x", "methods": "x,fastv(table='/etc/passwd')", "budget": "-5"},
        {"budget": "9999", "methods": ",,"},
        {"budget": "٣"},
    ):
        assert PageSettings.from_address(wrong, known, methods) == first
    assert PageSettings.from_address({"budget": "0"}, known, methods).budget == 1
    assert len(PageSettings.from_address({"question": "x" * 9999}, known, methods).question) == 500


def test_an_answer_is_shown_letter_by_letter():
    assert escaped("<b>*x*</b>") == "&#60;b&#62;&#42;x&#42;&#60;/b&#62;"


def test_the_command_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["demo"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: the page needs gradio: pip install 'vlmcompress[demo]'\n"
