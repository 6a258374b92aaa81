"""The user's words in a prompt, without what the chat template put around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from vlmcompress.errors import VLMCompressError
from vlmcompress.patches.families.family import Family

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Instruction:
    """Finds the instruction of a prompt.

    It is the text of the newest user turn after the turn's last picture or, where nothing follows
    the pictures, all text of that turn. With a processor (or tokenizer) the turn is what lies
    between the tokens that its chat template puts before and after a user's words; its special
    tokens and blanks at both ends are left out. Without one, only tokens that the model's
    configuration names (beginning, end, padding, picture marks) are left out: words that the
    template puts after the question, such as "ASSISTANT:", then count as instruction.
    """

    tokenizer: Any | None
    head: Ids
    """What the template puts before a user's words, the same in every turn."""
    tail: Ids
    """What it puts between a user's words and the answer."""
    dropped: frozenset[int]
    """Tokens that are no words."""

    @classmethod
    def of(cls, processor: Any | None, dropped: Iterable[int]) -> Instruction:
        """Read the chat template.

        Args:
            processor: a processor, a tokenizer or None.
            dropped: token ids that the model's configuration names.

        Raises:
            VLMCompressError: it is no processor, or its chat template does not work.
        """
        if processor is None:
            return cls(None, (), (), frozenset(dropped))
        tokenizer = getattr(processor, "tokenizer", processor)
        if not (callable(tokenizer) and hasattr(tokenizer, "get_vocab")):
            raise VLMCompressError(
                f"processor must be a processor or a tokenizer, got {type(processor).__name__}"
            )
        added = tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        special |= set(tokenizer.all_special_ids) | set(dropped)
        # A word that the vocabulary does not have is still one of the user's.
        special.discard(tokenizer.unk_token_id)
        owner = processor if getattr(processor, "chat_template", None) else tokenizer
        head, tail = _frame(owner, tokenizer)
        return cls(tokenizer, head, tail, frozenset(special))

    def columns(self, ids: Sequence[int], pictures: Sequence[int]) -> list[int]:
        """Columns of the instruction, ascending; none if there are no words.

        Args:
            ids: a prompt without padding.
            pictures: columns of its placeholders.
        """
        start = max(_places(ids, self.head), default=-len(self.head)) + len(self.head)
        tails = (place for place in _places(ids, self.tail) if place >= start)
        end = next(tails, len(ids)) if self.tail else len(ids)
        words = [column for column in range(start, end) if ids[column] not in self.dropped]
        last = max((column for column in pictures if start <= column < end), default=-1)
        after = [column for column in words if column > last]
        return self._trim(after, ids) or self._trim(words, ids)

    def text(self, ids: Sequence[int]) -> str:
        """The words of some ids.

        Raises:
            VLMCompressError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise VLMCompressError(
                "the words of a prompt need a processor: compress(processor=...)"
            )
        text: str = self.tokenizer.decode(ids)
        return text.strip()

    def _trim(self, columns: list[int], ids: Sequence[int]) -> list[int]:
        """Without blanks at both ends."""
        if self.tokenizer is None:
            return columns

        def blank(column: int) -> bool:
            return not self.text([ids[column]])

        first = len(list(takewhile(blank, columns)))
        last = len(list(takewhile(blank, reversed(columns[first:]))))
        return columns[first : len(columns) - last]


def _places(ids: Sequence[int], wanted: Ids) -> list[int]:
    """Where `wanted` begins in `ids`."""
    width = len(wanted)
    starts = range(len(ids) - width + 1) if wanted else ()
    return [start for start in starts if tuple(ids[start : start + width]) == wanted]


def _frame(processor: Any, tokenizer: Any) -> tuple[Ids, Ids]:
    """What the chat template puts around the words of a user.

    Rendered twice with different words, it is what both renderings share. A second turn shows which
    part of that belongs to a turn and not to the beginning of a chat (a default system prompt).
    """
    if not getattr(processor, "chat_template", None):
        return (), ()
    words = _two_words(tokenizer)

    def render(*turns: tuple[str, str]) -> Ids:
        text = _render(processor, turns)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    first, other = (render(("user", word)) for word in words)
    head, tail = _shared(first, other), _shared(first[::-1], other[::-1])[::-1]
    earlier = (("user", words[0]), ("assistant", words[0]))
    try:
        later = _shared(*(render(*earlier, ("user", word)) for word in words))
    except VLMCompressError:
        return head, tail  # the template allows one turn only
    return _shared(head[::-1], later[::-1])[::-1] or head, tail


def _render(processor: Any, turns: Iterable[tuple[str, str]]) -> str:
    """The text of a chat; contents are lists of parts for processors, plain text for tokenizers."""
    turns = list(turns)
    parts = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in turns]
    plain = [{"role": r, "content": t} for r, t in turns]
    chats = [plain, parts] if hasattr(processor, "get_vocab") else [parts, plain]
    reason = "it does not show the words of the user"
    for chat in chats:
        try:
            text = str(
                processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            )
        except Exception as error:  # a template is a program of its own and may raise anything
            reason = str(error)
            continue
        if turns[-1][1] in text and "'type'" not in text:
            return text
    raise VLMCompressError(f"the chat template of the processor does not work: {reason}")


def _two_words(tokenizer: Any) -> tuple[str, str]:
    """Two words without a token in common, so that all that renderings share is the template."""
    unknown = {tokenizer.unk_token_id}
    first: tuple[str, set[int]] | None = None
    for number in range(len(tokenizer)):
        word = str(tokenizer.convert_ids_to_tokens(number)).lstrip("▁Ġ")
        if len(word) < 2 or not (word.isascii() and word.isalpha()):
            continue
        ids = set(tokenizer(word, add_special_tokens=False)["input_ids"])
        if first is None and not ids & unknown:
            first = word, ids
        elif first is not None and not ids & (unknown | first[1]):
            return first[0], word
    raise VLMCompressError("the tokenizer of the processor knows no two words")


def _shared(a: Ids, b: Ids) -> Ids:
    """The longest common beginning."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return tuple(x for x, _ in pairs)


def named_tokens(model: nn.Module, family: Family) -> set[int]:
    """Ids that the configuration gives a name: begin, end, padding, picture marks."""
    found = set(family.placeholders(model).values())
    config: Any = model.config
    for each in (config, config.get_text_config(), getattr(model, "generation_config", None)):
        for name, value in vars(each).items() if each is not None else ():
            if name.endswith(("token_id", "token_index")):
                values = value if isinstance(value, list) else [value]
                found |= {number for number in values if number is not None}
    return found
