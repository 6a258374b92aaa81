"""A limit of memory in questions about clips: answers of the whole clip, and refusals."""

from pathlib import Path

import pytest

import vlmcompress
from vlmcompress.demo.answers import DemoModel
from vlmcompress.demo.media import read
from vlmcompress.errors import BudgetError, UnsupportedModelError

SAMPLES = Path(vlmcompress.__file__).parent / "assets" / "samples"
CLIP, STREET = SAMPLES / "runway.mp4", SAMPLES / "street.png"
QUESTIONS = ("what appears first ?", "which way does it move ?")
LIMIT = "1GB"
SHORT = {"max_new_tokens": 4}


def pieces(found):
    return [note for note in found.report.notes if LIMIT.replace("GB", " GB") in note]


def kept(found):
    return [image.kept for image in found.report.images]


@pytest.mark.parametrize("reselect", [False, True])
def test_a_chat_encodes_its_clip_in_pieces(tiny_qwen, reselect):
    chats = [
        vlmcompress.Chat(*tiny_qwen, CLIP, "divprune", 20, max_memory=limit, reselect=reselect)
        for limit in (None, LIMIT)
    ]
    turns = []
    for chat in chats:
        with chat:
            turns.append([chat.ask(question) for question in QUESTIONS])
            turns[-1].append(chat.set("divprune", 30) and chat.ask(QUESTIONS[0]))
    whole, cut = turns
    assert [one.answer for one in cut] == [one.answer for one in whole]
    assert [kept(one) for one in cut] == [kept(one) for one in whole]
    assert not any(pieces(one) for one in whole)
    assert pieces(cut[0])
    assert pieces(cut[2])  # the next setting has it as well


def test_a_comparison_has_it_in_every_setting(tiny_qwen):
    ask = (*tiny_qwen, CLIP, QUESTIONS[0], ["divprune", "fastv"], "60%")
    found = vlmcompress.compare(*ask, max_memory=LIMIT, **SHORT)
    assert [one.setting.label for one in found] == ["full", "divprune", "fastv"]
    assert all(pieces(one) for one in found)
    plain = vlmcompress.compare(*ask, **SHORT)
    assert not any(pieces(one) for one in plain)
    assert [one.answer for one in found] == [one.answer for one in plain]
    with pytest.raises(BudgetError, match="encoding one frame takes"):
        vlmcompress.compare(*ask, max_memory=1)


def test_a_comparison_in_a_chat_has_it_too(tiny_qwen):
    with vlmcompress.Chat(*tiny_qwen, CLIP, "divprune", 20, max_memory=LIMIT, **SHORT) as chat:
        chat.ask(QUESTIONS[0])
        assert [bool(pieces(one)) for one in chat.compare("stride", 20)] == [True] * 3


def test_the_page_has_it_in_every_setting(tiny_llava, tiny_qwen):
    page = DemoModel(*tiny_qwen, "tiny-qwen", LIMIT)
    found = page.compare(read(None, "runway.mp4", True), QUESTIONS[0], ["divprune"], "50%")
    assert [bool(pieces(one)) for one in found] == [True, True]
    with pytest.raises(UnsupportedModelError, match="frames of llava models are not known"):
        DemoModel(*tiny_llava, "tiny-llava", LIMIT)


@pytest.mark.parametrize("ask", [vlmcompress.compare, vlmcompress.ask])
def test_what_cannot_be_cut_is_refused(tiny_llava, ask):
    with pytest.raises(UnsupportedModelError, match="frames of llava models are not known"):
        ask(*tiny_llava, STREET, QUESTIONS[0], max_memory=LIMIT)
    with pytest.raises(BudgetError, match="give bytes, or a text such as '2GB'"):
        ask(*tiny_llava, STREET, QUESTIONS[0], max_memory="much")
