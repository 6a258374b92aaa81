"""`vlmcompress.ask` and `vlmcompress.compare`: one call, the same as by hand."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlmcompress
from vlmcompress.asking.comparison import Comparison
from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.media.given import media_of

SAMPLES = Path(vlmcompress.__file__).parent / "assets" / "samples"
STREET = SAMPLES / "street.png"
QUESTION = "what color is the circle ?"
SHORT = {"max_new_tokens": 4}


def by_hand(model, processor, method, budget):
    image = Image.open(STREET).convert("RGB")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = processor(images=[image], text=text, return_tensors="pt")
    with vlmcompress.compress(model, method, budget) as c, torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip(), c.report()


def test_an_answer_is_that_of_compress_and_generate(tiny_llava):
    found = vlmcompress.ask(*tiny_llava, STREET, QUESTION, "fastv", "50%", **SHORT)
    answer, report = found
    wanted, by = by_hand(*tiny_llava, "fastv", "50%")
    assert answer == found.answer == str(found) == wanted
    assert report.images == by.images
    assert (found.before, found.after, found.mean) == (144, 144, 72)
    assert list(found.milliseconds)[-2:] == ["other", "total"]
    with pytest.raises(VLMCompressError, match="not compressed"):
        vlmcompress.Compression.of(tiny_llava[0])


def test_defaults_options_and_method_objects(tiny_llava):
    ask = lambda *a, **k: vlmcompress.ask(*tiny_llava, STREET, QUESTION, *a, **k, **SHORT)  # noqa: E731
    assert (ask().report.method, ask().report.budget, ask().after) == ("divprune", "25%", 36)
    assert ask("divprune").after == 14  # its own setting
    assert ask(vlmcompress.get_method("divprune"), 20).after == 20
    kept = [ask("random", 20, seed=seed).report.images[0].kept for seed in (1, 2)]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("kind", ["path", "text", "image", "array", "list"])
def test_whatever_a_picture_is(tiny_llava, kind):
    image = Image.open(STREET).convert("RGB")
    given = {"path": STREET, "text": str(STREET), "image": image, "array": np.asarray(image)}
    given["list"] = [image]
    found = vlmcompress.ask(*tiny_llava, given[kind], QUESTION, **SHORT)
    assert found.report.images == vlmcompress.ask(*tiny_llava, STREET, QUESTION).report.images


def test_clips_from_files_and_from_frames():
    (clip,) = media_of(SAMPLES / "runway.mp4", frames=8)
    assert len(clip.frames) == 8
    (again,) = media_of(clip.frames, fps=4)
    assert np.array_equal(again.frames, clip.frames)
    assert again.times[:3] == [0, 0.25, 0.5]
    assert len(media_of([STREET, clip])) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no picture and no clip was given"),
        (7, "7 is no picture and no clip"),
        (np.zeros((4, 4, 3)), "float64 is no picture"),
        (np.zeros((4, 4), np.uint8)[None, None, None], "is no picture"),
        ("https://example.com/a.png", "nothing is fetched"),
        ("missing.png", "missing.png"),
        ("", "no name"),
        ("http://x//a.png", "'http://x//a.png' is an address"),
        (Image.new("RGB", (0, 4)), "0x4 pixels shows nothing"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(given, words):
    with pytest.raises(VLMCompressError, match=words) as error:
        media_of(given)
    assert "\n" not in str(error.value)
    of_names = "fetched", "address", "no name"
    assert isinstance(error.value, MediaError) or any(part in words for part in of_names)


def in_a_chat(question, **given):
    return vlmcompress.Chat(**given).ask(question)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"question": " "}, "the question must be a text, got ' '"),
        ({"question": "\ud800"}, "half a surrogate pair"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, got 0"),
        ({"max_new_tokens": None}, "max_new_tokens must be .* got None"),
        ({"max_new_tokens": True}, "max_new_tokens must be .* got True"),
        ({"frames": "many"}, "the number of frames must be an integer, got 'many'"),
        ({"fps": 0}, "frames per second must be above zero"),
        ({"processor": None}, "NoneType is no processor of a vision-language model"),
    ],
)
@pytest.mark.parametrize("function", [vlmcompress.ask, vlmcompress.compare, in_a_chat])
def test_wrong_arguments_are_said_in_one_line(tiny_llava, function, given, words):
    model, processor = tiny_llava
    given = {"model": model, "processor": processor, "media": STREET} | given
    with pytest.raises(VLMCompressError, match=words) as error:
        function(**{"question": QUESTION} | given)
    assert "\n" not in str(error.value)
    with pytest.raises(VLMCompressError, match="not compressed"):
        vlmcompress.Compression.of(model)


def test_a_tokenizer_in_place_of_the_processor_is_refused(tiny_llava):
    model, processor = tiny_llava
    with pytest.raises(VLMCompressError, match="give the model's own"):
        vlmcompress.ask(model, processor.tokenizer, STREET, QUESTION)


@pytest.mark.parametrize("methods", [None, vlmcompress.get_method("divprune"), "divprune"])
def test_one_method_may_be_given_alone(tiny_llava, methods):
    found = vlmcompress.compare(*tiny_llava, STREET, QUESTION, methods, 36, **SHORT)
    assert [one.after for one in found] == [144, 36]


@pytest.mark.parametrize("repeat", [0, "2", 1.5])
def test_rounds_are_counted(tiny_llava, repeat):
    with pytest.raises(VLMCompressError, match="repeat must be a whole number"):
        vlmcompress.compare(*tiny_llava, STREET, QUESTION, repeat=repeat)


def test_impossible_pictures_of_an_answer(tiny_llava):
    found = vlmcompress.ask(*tiny_llava, STREET, QUESTION, **SHORT)
    for given, words in (({"width": 0}, "width"), ({"layer": "a"}, "layer a")):
        with pytest.raises(VLMCompressError, match=words):
            found.overlay(**given)
    with pytest.raises(VLMCompressError, match="columns"):
        Comparison([found]).overlay(columns=0)


def test_an_overlay_needs_no_processor_after_ask_and_takes_a_layer(tiny_llava):
    found = vlmcompress.ask(*tiny_llava, STREET, QUESTION, "fastv", "50%", **SHORT)
    page = found.overlay()
    assert page.width == 480
    first, last = (np.asarray(found.overlay(layer=layer), float)[:480] for layer in (0, 5))
    assert first.mean() > last.mean()  # all tokens enter layer 0, few the last
    assert np.asarray(found.report.overlay(STREET), float)[:480].mean() > last.mean()
    with pytest.raises(VLMCompressError, match="give 0 to 5"):
        found.overlay(layer=6)
    with vlmcompress.compress(tiny_llava[0], "divprune") as c, pytest.raises(VLMCompressError):
        c.report().overlay(STREET)


def test_a_comparison_has_all_settings_and_says_what_changed(tiny_llava):
    found = vlmcompress.compare(
        *tiny_llava, STREET, QUESTION, ["divprune", "fastv"], ["50%", 9], **SHORT
    )
    assert [one.setting.name for one in found] == [
        *("full", "divprune at 50%", "divprune at 9", "fastv at 50%")
    ]
    assert list(found.refused) == ["fastv at 9"]
    assert found[0].after == 144
    assert found[2].after == 9
    text = str(found)
    assert "144 -> 9" in text
    assert "refused: fastv at 9: fastv with its first cut" in text
    assert found.changed().startswith(("nothing, 3 of 3", "2 of 3", "1 of 3", "0 of 3"))
    assert found.overlay(columns=2).width == 2 * 480 + 12


def test_a_changed_answer_is_named(tiny_llava):
    found = vlmcompress.compare(*tiny_llava, STREET, QUESTION, "text-only", **SHORT)
    assert found[1].answer != found[0].answer
    assert (
        found.changed() == f"0 of 1 answer as with all tokens; otherwise: text-only "
        f"({found[1].answer})"
    )


def test_a_notebook_shows_it_all_without_letting_html_in(tiny_llava):
    pytest.importorskip("matplotlib")
    found = vlmcompress.ask(*tiny_llava, STREET, "what <b>color</b> is it ?", "divprune", 9)
    page = found._repr_html_()
    assert "&lt;b&gt;color" in page
    assert "<b>" not in page
    assert "144 &rarr; 9" in page
    assert "data:image/png;base64," in page
    assert found.report._repr_html_() in page
    figure = found.report.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["decoder layer", "milliseconds"]
    both = vlmcompress.compare(*tiny_llava, STREET, QUESTION, **SHORT)
    assert len(both.plot().axes[0].get_yticklabels()) == 2
    assert both._repr_html_().count("<tr>") == 3


def test_the_report_stays_json_and_equal(tiny_llava):
    report = vlmcompress.ask(*tiny_llava, STREET, QUESTION, **SHORT).report
    assert report.processor is tiny_llava[1]
    assert "processor" not in report.to_dict()
    assert "processor" not in repr(report)


@pytest.mark.parametrize("function", [vlmcompress.ask, vlmcompress.compare])
def test_the_help_names_every_argument(function):
    told = inspect.getdoc(function)
    for name in inspect.signature(function).parameters:
        assert name in told
    for part in ("Args:", "Returns:", "Raises:", ">>>"):
        assert part in told


def test_built_in_models_load_without_a_bar(capfd):
    loaded = vlmcompress.load("tiny-llava", device="cpu")
    vlmcompress.ask(*loaded, STREET, QUESTION, "cdpruner", 9)  # loads tiny-clip as well
    vlmcompress.load("tiny-colqwen", device="cpu")
    assert capfd.readouterr() == ("", "")
