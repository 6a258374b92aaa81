"""Settings, prompts and answers that plug-ins of other harnesses share."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from raced import profile_of

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.eval.harnesses.harness import (
    HarnessSettings,
    Subject,
    alike,
    conversation,
    image_of,
    video_of,
)
from vlmcompress.eval.run.answering import Batch, answer
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.files import write_json
from vlmcompress.models.names import ASSETS
from vlmcompress.prompts import prepare

SETTINGS = HarnessSettings("tiny-llava", "full")
CPU = {"device": "cpu", "dtype": "float32"}


def picture(color="red", size=(96, 96)):
    return Image.new("RGB", size, color)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(words):
    return {"type": "text", "text": words}


def image(url):
    return {"type": "image", "url": url}


def subject(name="tiny-llava", method="none", **settings):
    return Subject(HarnessSettings.read({"pretrained": name, "method": method, **CPU, **settings}))


def samples(task, count):
    return load_tasks([task])[0].samples(count, 0)


def prompts_of(found):
    return [(one.load(), one.question) for one in found]


def test_settings_are_read_as_harnesses_give_them():
    given = {"pretrained": "tiny-llava", "method": '"fastv(k=3)"', "budget": 64, "fps": 2}
    assert HarnessSettings.read(given) == HarnessSettings(
        "tiny-llava", "fastv(k=3)", budget="64", fps=2
    )
    assert HarnessSettings.read({"pretrained": "x", "method": "none"}).method == "full"
    assert (
        HarnessSettings.read({"pretrained": "x", "method": "auto", "budget": "25%"}).method
        == "auto"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "none"}, "pretrained= is missing"),
        ({"pretrained": "tiny-llava"}, "method= is missing.*method=none"),
        ({"pretrained": "x", "metod": "none"}, "'metod': did you mean 'method'"),
        ({"pretrained": "x", "method": "divprun"}, "did you mean 'divprune'"),
        ({"pretrained": "x", "method": "divprune", "budget": 2.5}, "budget '2.5'"),
        ({"pretrained": "x", "method": "none", "frames": 8, "fps": 2}, "both given"),
    ],
)
def test_mistakes_in_settings_are_found_before_anything_is_loaded(given, message):
    with pytest.raises(VLMCompressError, match=message):
        HarnessSettings.read(given)


def test_media_keep_their_places():
    blue = picture("blue")
    messages = [
        {"role": "system", "content": "be brief"},
        *user(text("is"), image(picture()), text("like"), image(blue), text("?")),
    ]
    media, turns = conversation(messages, SETTINGS)
    assert [one.getpixel((0, 0)) for one in media] == [(255, 0, 0), (0, 0, 255)]
    assert turns[0] == {"role": "system", "content": [text("be brief")]}
    assert [part["type"] for part in turns[1]["content"]] == [
        *("text", "image", "text", "image", "text"),
    ]
    assert turns[1]["content"][2] == text("like")
    assert turns[1]["content"][1] == {"type": "image"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "a.wav"}, "no audio"),
        ({"type": "video", "url": "a.mp4", "start_time": 1.0}, "part of a clip"),
        ({"type": "video", "url": {"url": "a.mp4", "video_end": 2}}, "part of a clip"),
        ({"type": "image", "url": 3}, "PIL image or a path, not a int"),
        ({"type": "image", "url": "none.png"}, "does not exist"),
        ({"type": "video", "url": "none.mp4"}, "does not exist"),
        ({"type": "video", "url": np.zeros((2, 3, 8, 8), np.uint8)}, r"\[2, 3, 8, 8\] of uint8"),
        ({"type": "video", "url": np.zeros((2, 8, 8, 3))}, "of float64"),
        ({"type": "video", "url": [picture(), picture(size=(8, 8))]}, "one size"),
        ({"type": "video", "url": []}, "not a list"),
    ],
)
def test_what_cannot_be_shown_is_said(part, message):
    with pytest.raises(VLMCompressError, match=message):
        conversation(user(part), SETTINGS)


def test_images_become_rgb(tmp_path):
    assert image_of(Image.new("L", (4, 4), 7)).getpixel((0, 0)) == (7, 7, 7)
    file = tmp_path / "one.png"
    picture("lime").save(file)
    assert image_of(str(file)).getpixel((0, 0)) == (0, 255, 0)


def test_videos_from_a_file_and_from_frames():
    settings = dataclasses.replace(SETTINGS, frames=4)
    clip = video_of(str(ASSETS / "samples" / "runway.mp4"), settings)
    assert len(clip.frames) == 4
    assert video_of(clip, SETTINGS) is clip
    media, turns = conversation(user({"type": "video", "url": clip}), SETTINGS)
    assert (media, turns[0]["content"]) == ([clip], [{"type": "video"}])

    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    few = video_of(frames, dataclasses.replace(SETTINGS, frames=3))
    assert few.indices == [0, 4, 8]
    assert few.frames[:, 0, 0, 0].tolist() == [0, 4, 8]
    assert few.times == [0.0, 2.0, 4.0], "two frames a second"
    fast = video_of([Image.fromarray(one) for one in frames], dataclasses.replace(SETTINGS, fps=4))
    assert np.array_equal(fast.frames, frames)
    assert fast.times[:2] == [0.0, 0.25]


def test_a_video_that_is_no_video_is_a_media_error():
    with pytest.raises(MediaError, match="not a float"):
        video_of(1.5, SETTINGS)


def test_equal_kinds_go_together_in_order():
    assert alike([{"a": 1}, {"a": 2}, {"a": 1}, {"b": [1]}]) == [[0, 2], [1], [3]]
    assert alike([]) == []


@pytest.mark.parametrize(
    ("name", "task", "method", "budget"),
    [
        ("tiny-llava", "pictures", "divprune", "6%"),
        ("tiny-llava", "pictures", "fastv(k=2)", "50%"),
        ("tiny-qwen", "clips", "divprune", "6%"),
    ],
)
def test_answers_and_counts_are_those_of_our_own_evaluation(name, task, method, budget, request):
    model, processor = request.getfixturevalue(name.replace("-", "_"))
    found = samples(task, 8)
    case = Case(method, budget)
    batch = Batch(model, processor, found)
    ours = answer(model, processor, batch.inputs(case), case, max_new_tokens=6)
    theirs = subject(name, method, budget=budget).ask(prompts_of(found), max_new_tokens=6)
    assert [one.text for one in theirs] == ours.answers
    assert [one.kept for one in theirs] == ours.mean
    assert [one.before for one in theirs] == ours.before == [144] * 8
    assert [one.output_tokens for one in theirs] == ours.output_tokens
    lengths = batch.inputs(case)["attention_mask"].sum(1).tolist()
    for one, length in zip(theirs, lengths, strict=True):
        assert one.input_tokens == length - 144 + round(one.kept)


def test_what_enters_is_text_and_all_pictures_without_a_method():
    found = samples("pictures", 2)
    whole = subject()
    inputs = prepare(whole.model, whole._processor, prompts_of(found))
    answers = whole.ask(prompts_of(found), max_new_tokens=2)
    assert [one.input_tokens for one in answers] == inputs["attention_mask"].sum(1).tolist()
    assert whole.seconds > 0


def test_pictures_clips_and_bare_text_in_one_call(monkeypatch):
    """Answers come in the order of the prompts, and each kind goes and counts by itself."""
    sizes = []

    def spy(model, processor, prompts):
        sizes.append(len(prompts))
        return prepare(model, processor, prompts)

    monkeypatch.setattr("vlmcompress.eval.harnesses.harness.prepare", spy)
    shown, filmed = prompts_of(samples("pictures", 2)), prompts_of(samples("clips", 2))
    bare = ([], "what color is the circle ?")
    one = subject("tiny-qwen", "divprune", budget="25%")
    mixed = one.ask([filmed[0], bare, shown[0], filmed[1], shown[1]], max_new_tokens=4)
    assert sizes == [2, 1, 2]
    assert [found.before for found in mixed] == [144, 0, 36, 144, 36]
    assert [found.kept for found in mixed] == [36, 0, 9, 36, 9]
    assert one.ask(shown, max_new_tokens=4) == [mixed[2], mixed[4]]
    assert one.ask(filmed, max_new_tokens=4) == [mixed[0], mixed[3]]
    assert one.ask([bare], max_new_tokens=4) == [mixed[1]]


def test_several_images_and_their_places_reach_the_model():
    one = subject("tiny-qwen", "divprune", budget="25%")
    red, blue = image(picture("red")), image(picture("blue"))
    first = conversation(user(red, text("and"), blue, text("?")), SETTINGS)
    (found,) = one.ask([first], max_new_tokens=1)
    assert (found.before, found.kept) == (72, 18)

    def ids(*parts):
        prompt = conversation(user(*parts), SETTINGS)
        return prepare(one.model, one._processor, [prompt])["input_ids"][0].tolist()

    picture_token = one.model.config.image_token_id
    places = [i for i, token in enumerate(ids(red, text("and"), blue)) if token == picture_token]
    assert places[-1] - places[0] > 71, "a word stands between the two pictures"
    assert ids(red, text("and"), blue) != ids(red, blue, text("and"))


def test_beams_count_each_prompt_once():
    prompts = prompts_of(samples("pictures", 3))
    one = subject(method="divprune", budget="25%")
    found = one.ask(prompts, max_new_tokens=4, num_beams=3)
    assert [(answer.before, answer.kept) for answer in found] == [(144, 36)] * 3


def test_options_reach_compress():
    one = subject(method="divprune", budget=36, positions="renumber", order="method")
    one.ask(prompts_of(samples("pictures", 1)), max_new_tokens=1)
    report = one._handle.report()
    assert (report.positions, report.order, report.budget) == ("renumber", "method", "36")
    whole = subject(attn_implementation="eager")
    assert whole.model.config._attn_implementation == "eager"


def test_a_profile_in_the_place_of_a_method(tiny_llava, tmp_path):
    path = tmp_path / "mine.json"
    write_json(path, profile_of(tiny_llava[0], {"25%": "stride"}))
    given = {"pretrained": "tiny-llava", "profile": f"'{path}'", "budget": "25%"}
    settings = HarnessSettings.read(given)
    assert (settings.method, settings.profile) == ("auto", str(path))
    prompts = prompts_of(samples("pictures", 2))
    answers = Subject(HarnessSettings.read({**given, **CPU})).ask(prompts, max_new_tokens=3)
    plain = subject(method="stride", budget="25%").ask(prompts, max_new_tokens=3)
    assert [one.text for one in answers] == [one.text for one in plain]
    assert [one.kept for one in answers] == [36, 36]
    for changed, message in (
        ({"method": "divprune"}, 'give it with "auto", not divprune'),
        ({"method": "none"}, 'give it with "auto", not none'),
        ({"budget": None}, "auto needs a budget; profile .* knows 25%"),
        ({"profile": "none.json"}, "cannot read profile 'none.json'"),
        ({"max_memory": "much"}, "max_memory='much' is not possible"),
    ):
        with pytest.raises(VLMCompressError, match=message):
            HarnessSettings.read({**given, **changed})
    with pytest.raises(VLMCompressError, match="is of another model, tiny-llava"):
        Subject(HarnessSettings.read({**given, **CPU, "pretrained": "tiny-qwen"}))
    with pytest.raises(VLMCompressError, match="frames of llava models are not known"):
        subject(max_memory="1GB")
