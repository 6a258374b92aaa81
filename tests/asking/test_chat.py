"""`vlmcompress.Chat`: later turns go on from the cache, or choose anew from kept features."""

from pathlib import Path

import pytest
import torch

import vlmcompress
from vlmcompress.asking import chat as module
from vlmcompress.asking.chat import _conversation
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.given import media_of
from vlmcompress.prompts import generate, prepare

SAMPLES = Path(vlmcompress.__file__).parent / "assets" / "samples"
STREET, CLIP = SAMPLES / "street.png", SAMPLES / "runway.mp4"
QUESTIONS = ("what color is the circle ?", "how many stars are there ?", "what shape is it ?")


@pytest.fixture
def encodings():
    """Count how often a model's tower runs."""

    def count(model):
        tower = getattr(model.model, "vision_tower", None) or model.model.visual
        calls = []
        handle = tower.register_forward_hook(lambda *_: calls.append(1))
        count.handles.append(handle)
        return calls

    count.handles = []
    yield count
    for handle in count.handles:
        handle.remove()


def talk(loaded, media, *setting, **options):
    with vlmcompress.Chat(*loaded, media, *setting, max_new_tokens=4, **options) as chat:
        for question in QUESTIONS:
            chat.ask(question)
    return chat.turns


@pytest.mark.parametrize(("name", "media"), [("llava", STREET), ("qwen", STREET), ("qwen", CLIP)])
def test_later_turns_on_the_cache_equal_reading_all_again(
    tiny_llava, tiny_qwen, encodings, name, media
):
    """The same tokens without a cache give the same answer."""
    model, processor = loaded = {"llava": tiny_llava, "qwen": tiny_qwen}[name]
    calls = encodings(model)
    with vlmcompress.Chat(*loaded, media, "full", max_new_tokens=4) as chat:
        for question in QUESTIONS:
            before = chat._ids
            chat.ask(question)
            assert before is None or torch.equal(chat._ids[:, : before.shape[1]], before)
        asked = chat._ids
    assert len(calls) == 1
    first = prepare(model, processor, [(media_of(media), QUESTIONS[0])])
    said = processor.tokenizer(chat.turns[2].answer, add_special_tokens=False)["input_ids"]
    ids = asked[:, : -len(said) - 1]  # without the answer and its end
    more = ids.shape[1] - first["input_ids"].shape[1]
    whole = {**first, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in first:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(first["mm_token_type_ids"], (0, more))
    assert generate(model, processor, whole, max_new_tokens=4).texts == [chat.turns[2].answer]
    assert QUESTIONS[1].split()[2] in processor.decode(ids[0])
    with pytest.raises(VLMCompressError, match="not compressed"):
        vlmcompress.Compression.of(model)


def test_a_turn_is_tokenized_as_the_template_writes_it(tiny_llava):
    """tiny-llava's template writes answers as they were generated, so both ways agree."""
    seen = []
    for reselect in (False, True):
        with vlmcompress.Chat(*tiny_llava, STREET, "full", reselect=reselect) as chat:
            for question in QUESTIONS:
                chat.ask(question)
            seen.append((chat._ids.tolist(), [turn.answer for turn in chat.turns]))
    assert seen[0] == seen[1]


def test_the_cache_keeps_what_the_first_question_left(tiny_qwen):
    turns = talk(tiny_qwen, STREET, "divprune", 9)
    assert [turn.after for turn in turns] == [9, 9, 9]
    assert turns[1].report.images == turns[0].report.images
    assert turns[1].report.notes
    assert turns[1].milliseconds["encoder"] == 0
    assert turns[2].overlay().width >= 480


def test_reselect_serves_each_question_and_is_what_the_whole_conversation_gives(tiny_qwen):
    turns = talk(tiny_qwen, STREET, "pyramiddrop", "40%", reselect=True)
    cuts = [str(turn.report.images[0].cuts) for turn in turns]
    assert len(set(cuts)) == 3
    fixed = talk(tiny_qwen, STREET, "pyramiddrop", "40%")
    assert [str(turn.report.images[0].cuts) for turn in fixed] == [cuts[0]] * 3
    model, processor = tiny_qwen
    media = media_of(STREET)
    conversation = _conversation(media, turns[:2], QUESTIONS[2])
    with vlmcompress.compress(model, "pyramiddrop", "40%", processor=processor) as c:
        inputs = prepare(model, processor, [(media, conversation)])
        found = generate(model, processor, inputs, max_new_tokens=4)
        assert c.report().images == turns[2].report.images
    assert found.texts == [turns[2].answer]


@pytest.mark.parametrize("method", ["cdpruner", "hiprune", "tome"])
def test_reselect_knows_the_signals_of_the_kept_features(tiny_llava, encodings, method):
    calls = encodings(tiny_llava[0])
    turns = talk(tiny_llava, STREET, method, 20, reselect=True)
    assert len(calls) == 1
    assert [turn.after for turn in turns] == [20] * 3
    alone = vlmcompress.ask(*tiny_llava, STREET, QUESTIONS[0], method, 20)
    assert turns[0].report.images == alone.report.images
    if method == "cdpruner":
        assert turns[0].report.images[0].kept != turns[1].report.images[0].kept


def test_another_method_takes_over_and_compare_leaves_the_conversation(tiny_qwen):
    with vlmcompress.Chat(*tiny_qwen, STREET, "divprune", 9, max_new_tokens=4) as chat:
        with pytest.raises(VLMCompressError, match="nothing was asked yet"):
            chat.compare()
        chat.ask(QUESTIONS[0])
        with pytest.raises(VLMCompressError, match="unknown method"):
            chat.set("divprunee")
        assert chat.setting.label == "divprune"
        compared = chat.compare(["stride"], 9)
        assert [one.setting.name for one in compared] == ["full", "divprune at 9", "stride at 9"]
        assert chat.ask(QUESTIONS[1]).after == 9
        chat.set("stride", 36)
        assert chat.ask(QUESTIONS[2]).after == 36
        chat.set(budget=18)
        assert chat.ask(QUESTIONS[2]).after == 18
        assert len(chat.turns) == 4
        chat.reset()
        assert chat.turns == []
        assert chat.ask(QUESTIONS[0]).milliseconds["encoder"] > 0


def test_compare_in_between_does_not_change_what_follows(tiny_qwen):
    with vlmcompress.Chat(*tiny_qwen, STREET, "divprune", 36, max_new_tokens=4) as chat:
        chat.ask(QUESTIONS[0])
        chat.compare()
        found = chat.ask(QUESTIONS[1])
    assert found.answer == talk(tiny_qwen, STREET, "divprune", 36)[1].answer
    assert found.milliseconds["encoder"] == 0


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_refused_or_interrupted_question_is_no_turn(tiny_llava, monkeypatch):
    with vlmcompress.Chat(*tiny_llava, STREET, "divprune", 9, max_new_tokens=2) as chat:
        first = chat.ask(QUESTIONS[0])
        with pytest.raises(VLMCompressError, match="must be a text"):
            chat.ask("")
        with monkeypatch.context() as patch:
            patch.setattr(
                module, "generate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                chat.ask(QUESTIONS[1])
        assert chat.turns == [first]
        assert chat.ask(QUESTIONS[1]).after == 9
    assert torch.is_inference_mode_enabled() is False


def test_one_other_method_may_be_compared_and_a_refused_first_question_leaves_nothing(tiny_llava):
    chat = vlmcompress.Chat(*tiny_llava, STREET, budget=99999, max_new_tokens=2)
    with pytest.raises(VLMCompressError, match="above the 144"):
        chat.ask(QUESTIONS[0])
    with pytest.raises(VLMCompressError, match="not compressed"):
        vlmcompress.Compression.of(tiny_llava[0])
    chat.set(budget=36)
    chat.ask(QUESTIONS[0])
    assert [one.setting.name for one in chat.compare("stride", 36)][1:] == [
        *("divprune at 36", "stride at 36")
    ]
    chat.close()


@pytest.mark.parametrize("reselect", [False, True])
def test_a_later_question_holds_no_picture_and_no_more_words_than_fit(tiny_llava, reselect):
    """As the first question, whose processor counts pictures."""
    with vlmcompress.Chat(*tiny_llava, STREET, "full", max_new_tokens=2, reselect=reselect) as chat:
        for _ in range(2):
            with pytest.raises(VLMCompressError, match=r"<image> in a question stands for|refuses"):
                chat.ask("what is in <image> ?")
            with pytest.raises(VLMCompressError, match=r"a prompt of \d+ tokens beside its pictur"):
                chat.ask("what " * 20_000)
            chat.ask(QUESTIONS[0])
        assert [turn.question for turn in chat.turns] == [QUESTIONS[0]] * 2
