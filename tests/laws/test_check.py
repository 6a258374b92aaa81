"""`vlmcompress check` passes on sound models, and says what is wrong with broken adapters."""

from __future__ import annotations

import functools

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.cli import app
from vlmcompress.errors import UntestedModelWarning, VLMCompressError
from vlmcompress.laws import subject
from vlmcompress.laws.check import SAMPLE
from vlmcompress.laws.law import Law
from vlmcompress.laws.report import CheckReport, LawResult
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.patches.families.llava import Llava
from vlmcompress.patches.families.llava_onevision import LlavaOnevision
from vlmcompress.patches.families.qwen2_5_vl import Qwen2_5VL
from vlmcompress.prompts import prepare
from vlmcompress.tokens import Grid, Layout, Separator

CLIP = SAMPLE.parent / "runway.mp4"
FOUND, SEPARATORS = "tokens of the picture are found", "separators are known as such"
PLACES, KEEPING = "tokens lie where they show", "keeping all changes not one bit"
STAGED, MASKED = "dropping = taking rows out", "dropping = masking"
CACHE, BATCH = "cached = uncached", "batch = singles"
NOTICED, UNDO = "dropping is noticed", "removing leaves nothing behind"
LAWS = {FOUND, SEPARATORS, PLACES, KEEPING, STAGED, MASKED, CACHE, BATCH, NOTICED, UNDO}


def failed(document):
    """The laws that fail, with what is said of each."""
    results = document["results"]
    return {one["law"]: one["reason"] for one in results if one["state"] == "FAILS"}


@pytest.fixture(scope="module")
def used(tiny_llava):
    """tiny-llava after its first forward, at which transformers puts hooks on its tower."""
    model, processor = tiny_llava
    model(**prepare(model, processor, [([Image.open(SAMPLE)], "what ?")]))
    return model


def test_tiny_llava(check, used):
    before = snapshot(used)
    code, document = check("tiny-llava")
    assert (code, failed(document)) == (0, {})
    assert document["holds"]
    assert {one["law"] for one in document["results"]} == LAWS
    assert {one["state"] for one in document["results"]} == {"holds"}
    asked = [one["method"] for one in document["results"] if one["law"] == STAGED]
    assert asked == ["divprune 25%", "divprune 50%", "fastv"]
    assert {one["allowed"] for one in document["results"] if one["law"] == STAGED} == {1e-4}
    assert document["dtype"] == "float32"
    assert snapshot(used) == before
    assert_readable(document)


def assert_readable(document):
    """The same as a table."""
    results = [LawResult(**one) for one in document["results"]]
    fields = {name: value for name, value in document.items() if name != "holds"}
    report = CheckReport(**(fields | {"results": results}))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("llava (LlavaForConditionalGeneration), float32, cpu, sdpa")
    assert lines[-1].startswith(f"All hold: {len(results)} laws asked, 0 void")
    assert sum(" holds " in line for line in lines) == len(results)
    assert report.to_dict() == document


def test_tiny_qwen_with_an_image_of_ones_own(check, tmp_path):
    Image.open(SAMPLE).resize((120, 80)).save(tmp_path / "wide.png")
    code, document = check("tiny-qwen", "--image", tmp_path / "wide.png")
    assert (code, failed(document)) == (0, {})
    assert {one["state"] for one in document["results"]} == {"holds"}


@pytest.mark.slow
def test_tiny_qwen_with_an_image_and_a_clip(check):
    code, document = check("tiny-qwen", "--image", SAMPLE, "--video", CLIP)
    assert (code, failed(document)) == (0, {})
    assert {one["medium"] for one in document["results"]} == {"image", "video"}
    assert {one["state"] for one in document["results"]} == {"holds"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_every_dtype(name, dtype):
    model, processor = vlmcompress.load(name, device="cpu", dtype=getattr(torch, dtype))
    report = vlmcompress.check(model, processor)
    assert report.holds, str(report)
    assert report.dtype == dtype


def test_a_generic_family(check, generic_folder):
    code, document = check(generic_folder, "--device", "cpu")
    assert (code, failed(document)) == (0, {})
    assert document["model_type"] == "glm4v"
    states = {one["law"]: one["state"] for one in document["results"]}
    assert states[STAGED] == states[MASKED] == states[FOUND] == "holds"


def test_newlines(check, onevision_folder):
    code, document = check(onevision_folder, "--device", "cpu")
    assert (code, failed(document)) == (0, {})


def test_a_wrong_placeholder_is_caught(check, break_family):
    class Broken(Llava):
        def placeholders(self, model):
            return {"image": super().placeholders(model)["image"] + 1}

    break_family("llava", Broken)
    code, document = check("tiny-llava")
    assert code == 1
    assert "has 144 tokens of pictures, the adapter finds 0" in failed(document)[FOUND]
    assert failed(document)[NOTICED] == "no token was dropped"


@pytest.mark.slow
def test_pictures_in_a_wrong_order_are_caught(check, break_family, tmp_path):
    class Broken(Qwen2_5VL):
        def layouts(self, model, modality, features, call):
            return super().layouts(model, modality, features, call)[::-1]

    break_family("qwen2_5_vl", Broken)
    Image.open(SAMPLE).resize((120, 80)).save(tmp_path / "wide.png")
    code, document = check("tiny-qwen", "--image", tmp_path / "wide.png")
    assert code == 1
    assert FOUND in failed(document)


@pytest.mark.slow
def test_features_in_a_wrong_order_are_caught(check, break_family, tmp_path):
    class Broken(Qwen2_5VL):
        """Takes columns for rows."""

        def layouts(self, model, modality, features, call):
            found = super().layouts(model, modality, features, call)
            return [Layout.of(Grid(one.grid.t, one.grid.w, one.grid.h)) for one in found]

    break_family("qwen2_5_vl", Broken)
    Image.open(SAMPLE).resize((120, 80)).save(tmp_path / "wide.png")
    code, document = check("tiny-qwen", "--image", tmp_path / "wide.png")
    assert code == 1
    assert set(failed(document)) == {PLACES}
    (places,) = (one for one in document["results"] if one["law"] == PLACES)
    assert places["figure"] < places["allowed"]


def test_a_separator_that_is_taken_for_a_token_is_caught(check, break_family, onevision_folder):
    class Broken(LlavaOnevision):
        def layouts(self, model, modality, features, call):
            return [Layout.of(Grid(1, 1, len(tokens))) for tokens in features]

    break_family("llava_onevision", Broken)
    code, document = check(onevision_folder, "--device", "cpu")
    assert code == 1
    assert set(failed(document)) == {SEPARATORS}
    assert "are the same for any picture" in failed(document)[SEPARATORS]


@pytest.mark.slow
def test_a_separator_that_is_always_dropped_is_caught(check, break_family, onevision_folder):
    class Broken(LlavaOnevision):
        def layouts(self, model, modality, features, call):
            return [
                Layout(one.parts, tuple(Separator(s.place, 0, 0) for s in one.separators))
                for one in super().layouts(model, modality, features, call)
            ]

    break_family("llava_onevision", Broken)
    code, document = check(onevision_folder, "--device", "cpu")
    assert code == 1
    assert SEPARATORS in failed(document)


@pytest.mark.slow
def test_something_that_stays_behind_is_caught(check, monkeypatch, tiny_llava):
    from vlmcompress.patches.engine import Engine

    take_off, (model, _) = Engine._take_off, tiny_llava

    def leaky(engine):
        take_off(engine)
        model.left_behind = object()

    monkeypatch.setattr(Engine, "_take_off", leaky)
    try:
        code, document = check("tiny-llava")
    finally:
        del model.left_behind
    assert code == 1
    assert set(failed(document)) == {UNDO}


@pytest.mark.slow
def test_what_the_bare_model_does_not_keep_is_void(check, monkeypatch, tiny_llava):
    model, _ = tiny_llava
    generate = type(model).generate

    def uncached_otherwise(self, *args, use_cache=True, **kwargs):
        found = generate(self, *args, use_cache=use_cache, **kwargs)
        return found if use_cache else _shifted(found)

    monkeypatch.setattr(type(model), "generate", uncached_otherwise)
    code, document = check("tiny-llava")
    assert (code, failed(document)) == (0, {})
    for one in document["results"]:
        assert one["state"] == ("void" if one["law"] == CACHE else "holds")
        if one["law"] == CACHE:
            assert "the bare model differs with and without a cache" in one["reason"]


def _shifted(output):
    output.logits = tuple(logits * 2 for logits in output.logits)
    return output


def test_logits_that_are_no_numbers_fail():
    result = Law("a law", None, lambda: float("nan"), 1.0).ask("image")
    assert (result.state, result.figure, result.reason) == ("FAILS", None, "not a number")


@pytest.mark.slow
def test_other_positions_are_caught(check, monkeypatch):
    renumbered = functools.partial(vlmcompress.compress, positions="renumber")
    monkeypatch.setattr(subject, "compress", renumbered)
    code, document = check("tiny-llava")
    assert code == 1
    assert set(failed(document)) == {STAGED, MASKED}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model"], "no-such-model"),
        (["tiny-llava", "--image", "none.png"], "none.png"),
        (["tiny-llava", "--image", ""], "a file has no name"),
        (["tiny-llava", "--image", "http://a/b.png"], "is an address"),
        (["tiny-colqwen"], "answers no questions"),
        (["tiny-llava", "--dtype", "int3"], "int3"),
        (["tiny-llava", "--video", str(CLIP)], "no videos"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, arguments, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["check", *arguments, "--device", "cpu"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_model_must_be_ready(tiny_llava):
    model, processor = tiny_llava
    compressed = vlmcompress.compress(model, "divprune", 36)
    with compressed, pytest.raises(VLMCompressError, match="is compressed"):
        vlmcompress.check(model, processor)
    try:
        model.train()
        with pytest.raises(VLMCompressError, match="training mode"):
            vlmcompress.check(model, processor)
    finally:
        model.eval()
    with pytest.raises(VLMCompressError, match="not supported"):
        vlmcompress.check(nn.Linear(1, 1), processor)


def test_the_warning_of_untested_types_names_the_command(monkeypatch, tiny_llava):
    from vlmcompress.patches.families import standing

    monkeypatch.setattr(standing, "TESTED", frozenset())
    with pytest.warns(UntestedModelWarning, match="vlmcompress check MODEL"):
        vlmcompress.compress(tiny_llava[0], "divprune", 36).remove()


@pytest.mark.parametrize("given", [{"image": 3}, {"video": 3}, {"image": ""}])
def test_what_is_no_medium_is_said_in_one_line(tiny_llava, given):
    with pytest.raises(VLMCompressError, match="must be the path of a file, got"):
        vlmcompress.check(*tiny_llava, **given)
