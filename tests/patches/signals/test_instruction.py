"""The user's words are found, and nothing that the chat template put around them."""

from __future__ import annotations

from typing import Any

import pytest
from toy_tokenizer import CHATML, ONE_TURN, VICUNA, make

from vlmcompress.errors import VLMCompressError
from vlmcompress.patches.signals.instruction import Instruction

PICTURE = {"type": "image"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def found(template: str | None, chat: list[dict[str, Any]], **options: Any) -> str:
    """The instruction that is found in a rendered chat, as text."""
    tokenizer = make(template)
    options = {"add_generation_prompt": True, **options}
    text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    ids = tokenizer(text)["input_ids"]
    instruction = Instruction.of(tokenizer, set())
    image = tokenizer.convert_tokens_to_ids("<image>")
    pictures = [column for column, token in enumerate(ids) if token == image]
    columns = instruction.columns(ids, pictures)
    assert columns == sorted(columns)
    return " ".join(tokenizer.convert_ids_to_tokens([ids[column] for column in columns]))


BOTH = pytest.mark.parametrize("template", [CHATML, VICUNA], ids=["chatml", "vicuna"])


@BOTH
def test_the_question_after_the_picture_without_template_and_system_prompt(template):
    assert found(template, [user(PICTURE, words("w7 w8 w9"))]) == "w7 w8 w9"


@BOTH
def test_a_system_prompt_of_the_user_is_left_out(template):
    system = {"role": "system", "content": "w3 w4"}
    assert found(template, [system, user(PICTURE, words("w7 w8"))]) == "w7 w8"


@BOTH
def test_the_newest_turn_counts(template):
    chat = [
        user(PICTURE, words("w7 w8")),
        {"role": "assistant", "content": "w5"},
        user(words("w6 w9")),
    ]
    assert found(template, chat) == "w6 w9"
    assert found(template, chat[:1]) == "w7 w8"


@BOTH
def test_an_answer_that_was_begun_is_not_part_of_the_question(template):
    chat = [user(PICTURE, words("w7 w8")), {"role": "assistant", "content": "w5 w6"}]
    assert found(template, chat, add_generation_prompt=False) == "w7 w8"


@BOTH
def test_without_generation_prompt_nothing_changes(template):
    assert found(template, [user(PICTURE, words("w7"))], add_generation_prompt=False) == "w7"


@BOTH
def test_only_what_follows_the_last_picture_of_the_turn(template):
    assert found(template, [user(words("w1"), PICTURE, words("w7"), PICTURE, words("w8"))]) == "w8"


@BOTH
def test_a_question_before_the_picture_is_found_where_nothing_follows(template):
    assert found(template, [user(words("w7 w8"), PICTURE)]) == "w7 w8"


@BOTH
def test_line_breaks_stay_inside_and_go_at_the_ends(template):
    assert found(template, [user(PICTURE, words("\nw7\nw8\n"))]) == "w7 \n w8"


@BOTH
def test_unknown_words_are_still_words(template):
    assert found(template, [user(PICTURE, words("w7 zebra"))]) == "w7 <unk>"


@BOTH
def test_a_turn_without_words_has_no_instruction(template):
    assert found(template, [user(PICTURE)]) == ""


def test_a_template_for_one_turn_only():
    assert found(ONE_TURN, [{"role": "user", "content": "w7 w8"}]) == "w7 w8"


def test_a_tokenizer_without_template_leaves_special_tokens_out():
    tokenizer = make()
    ids = tokenizer("<s> w1 <vision> <image> \n w7 w8 </s>")["input_ids"]
    instruction = Instruction.of(tokenizer, set())
    assert [ids[c] for c in instruction.columns(ids, [3])] == [7, 8]


def test_without_a_processor_named_tokens_are_left_out_and_the_template_stays():
    instruction = Instruction.of(None, {90, 91})
    assert instruction.columns([90, 1, 91, 5, 6, 90], [2]) == [3, 4]
    assert instruction.columns([90, 1, 5], []) == [1, 2]


def test_a_prompt_that_was_not_made_with_the_template_is_taken_as_it_is():
    tokenizer = make(CHATML)
    ids = tokenizer("<image> w7 w8")["input_ids"]
    assert Instruction.of(tokenizer, set()).columns(ids, [0]) == [1, 2]


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (object(), "processor must be a processor or a tokenizer, got object"),
        (make("{{ messages[0]['contents'].strip() }}"), "chat template .* does not work"),
        (make("hello"), "does not show the words of the user"),
    ],
    ids=["no processor", "template that fails", "template without words"],
)
def test_a_processor_that_does_not_work(processor, message):
    with pytest.raises(VLMCompressError, match=message):
        Instruction.of(processor, set())


def test_the_template_of_a_tokenizer_serves_a_processor_without_one():
    class Processor:
        chat_template = None
        tokenizer = make(VICUNA)

    instruction = Instruction.of(Processor(), set())
    assert instruction.head == tuple(Processor.tokenizer("USER :")["input_ids"])
    assert instruction.tail == tuple(Processor.tokenizer("ASSISTANT :")["input_ids"])
