"""A conversation about pictures or clips, on fewer visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch

from vlmcompress.api import Compression
from vlmcompress.arguments import check_count, check_words
from vlmcompress.asking.answer import Answer
from vlmcompress.asking.ask import compared, settings_of
from vlmcompress.asking.asker import Asker, compressed, with_other
from vlmcompress.asking.comparison import Comparison
from vlmcompress.asking.kept_features import KeptFeatures
from vlmcompress.asking.setting import BudgetLike, MethodLike, Setting, setting_of
from vlmcompress.defaults import ANSWER_TOKENS, AUTO
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.given import MediaLike, media_of
from vlmcompress.media.video import Video
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.hooks.arguments import cache_name
from vlmcompress.prompts import Generated, Turn, check_length, generate, prepare
from vlmcompress.tuned import ProfileLike

_AGAIN = "the tokens that the first question left are used again"


class Chat:
    """Many questions about the same pictures or clips; the model is compressed until `close()`.

        >>> with vlmcompress.Chat(model, processor, "street.png", "divprune", 36) as chat:
        ...     chat.ask("what color is the circle?")
        ...     chat.ask("and the star?")

    By default the tokens are chosen for the first question, and later turns go on from its KV
    cache: nothing is encoded or read again. With `reselect=True` they are chosen anew for every
    question, from features of the pictures that are kept: the encoder runs once, the decoder reads
    the whole conversation again. That is for methods that look at the question.

    Attributes:
        turns: the answers so far, oldest first.
        setting: method and budget of the next turn.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        media: MediaLike,
        method: MethodLike | None = None,
        budget: BudgetLike = None,
        *,
        reselect: bool = False,
        max_new_tokens: int = ANSWER_TOKENS,
        positions: Literal["keep", "renumber"] = "keep",
        frames: int | None = None,
        fps: float | None = None,
        text_tower: Any = None,
        max_memory: int | str | None = None,
        profile: ProfileLike | None = None,
        **options: Any,
    ) -> None:
        """Read the media; nothing is run yet.

        Args:
            model: as for `vlmcompress.ask`, like all others but `reselect`.
            processor: its own.
            media: what the conversation is about.
            method: its tokens are reduced with.
            budget: of its tokens.
            reselect: choose anew for every question.
            max_new_tokens: longest answer.
            positions: of kept tokens.
            frames: sampled of a clip.
            fps: sampled of a clip.
            text_tower: see `compress`.
            max_memory: that the vision encoder may take for a clip; see `compress`.
            profile: in the place of a method; see `compress`. Whenever "auto" is asked for later,
                it takes what this profile says.
            **options: fields of the method.

        Raises:
            VLMCompressError: bad media, method or budget.
        """
        check_count("max_new_tokens", max_new_tokens)
        self.setting = setting_of(
            method, budget, options, positions, text_tower, max_memory, profile
        )
        self.turns: list[Answer] = []
        self._model, self._processor = model, processor
        self._media = media_of(media, frames, fps)
        self._reselect, self._max_new_tokens = reselect, max_new_tokens
        self._profile = profile
        self._handle: Compression | None = None
        self._kept: KeptFeatures | None = None
        self._cache: Any = None
        self._ids: torch.Tensor | None = None

    def ask(self, question: str) -> Answer:
        """The answer to the next question; a refused one is no turn, and as the first one leaves
        the model as it was.

        Raises:
            VLMCompressError: the question is empty, or the model, method or budget refuses.
        """
        check_words("the question", question)
        if self._handle is None:
            self._handle = compressed(self._model, self._processor, self.setting)
        try:
            found, again = self._generate(question)
        except BaseException:  # an interrupt leaves a cache that holds half an answer
            self._forget()
            if not self.turns:
                self._remove()
            raise
        report = self._handle.report()
        if again:
            report = replace(report, images=self.turns[-1].report.images, notes=[_AGAIN])
        if self._kept is not None:
            report = replace(report, notes=[*self._kept.notes, *report.notes])
        times = with_other({**report.milliseconds, "total": found.milliseconds})
        answer = Answer(self.setting, found.texts[0], report, times, question, self._media)
        self.turns.append(answer)
        return answer

    def set(
        self, method: MethodLike | None = None, budget: BudgetLike = None, **options: Any
    ) -> Setting:
        """Take another method or budget from the next question on, which reads all turns again.

        Args:
            method: None keeps the present one.
            budget: None takes the method's own, or keeps the present one with the present method.
            **options: fields of the method.

        Raises:
            VLMCompressError: as for `ask`; the present setting stays.
        """
        now = self.setting
        if method is None:
            method, budget = now.methods, now.budget if budget is None else budget
        profile = self._profile if method == AUTO else None
        found = setting_of(
            method, budget, options, now.positions, now.text_tower, now.max_memory, profile
        )
        self.close()
        self.setting = found
        return found

    def compare(
        self,
        methods: MethodLike | Sequence[MethodLike] = (),
        budget: BudgetLike = None,
        repeat: int = 1,
    ) -> Comparison:
        """The last question once more: on all tokens, in the present setting, and with others.

        Args:
            methods: one or several others.
            budget: theirs.
            repeat: timed rounds.

        Raises:
            VLMCompressError: nothing was asked yet, or an unknown method or a malformed budget.
        """
        if not self.turns:
            raise VLMCompressError("nothing was asked yet, so there is nothing to compare")
        check_count("repeat", repeat)
        others = settings_of(methods, budget, self.setting.max_memory, self._profile)
        *before, last = self.turns
        self._remove()
        asker = Asker(
            self._model,
            self._processor,
            self._media,
            last.question,
            self._max_new_tokens,
            _conversation(self._media, before, last.question),
        )
        return compared(asker, [self.setting, *others], repeat, self.setting.whole)

    def reset(self) -> None:
        """Forget all turns; the media stay."""
        self.turns = []
        self._forget()

    def close(self) -> None:
        """Restore the model; a later question compresses it again."""
        self._remove()
        self._forget()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        # Features are of the compression that encoded them; a cache outlives it.
        self._handle = self._kept = None

    def _forget(self) -> None:
        self._cache = self._ids = None

    def _generate(self, question: str) -> tuple[Generated, bool]:
        """The answer, and whether it goes on from the cache of the turn before."""
        following = None if self._reselect else self._following(question)
        if following is not None:
            inputs: Mapping[str, Any] = {
                "input_ids": following,
                "attention_mask": torch.ones_like(following),
                cache_name(self._model.forward) or "cache": self._cache,
            }
        else:
            conversation = _conversation(self._media, self.turns, question)
            inputs = prepare(self._model, self._processor, [(self._media, conversation)])
            if self._reselect:
                self._kept = self._kept or KeptFeatures(self._model, inputs)
                inputs = self._kept.instead_of_pixels(inputs)
        found = generate(
            self._model,
            self._processor,
            inputs,
            keep_cache=not self._reselect,
            max_new_tokens=self._max_new_tokens,
        )
        self._cache = found.cache
        self._ids = torch.cat([inputs["input_ids"], found.ids], dim=1)
        return found, following is not None

    def _following(self, question: str) -> torch.Tensor | None:
        """[1, L] the tokens so far and those of the next turn; None where that takes a new prompt.

        The tokens of earlier turns stay as they are in the cache: texts of answers may be read in
        other tokens than they were written in.
        """
        if self._cache is None or self._ids is None or not self.turns:
            return None
        before = _conversation(self._media, self.turns[:-1], self.turns[-1].question)
        said = self.turns[-1].answer
        answered = [*before, _turn("assistant", said)]
        asked = [*answered, _turn("user", question)]
        template = self._processor.apply_chat_template
        old, new = template(answered), template(asked, add_generation_prompt=True)
        at = old.rfind(said) if said else -1
        if at < 0 or not new.startswith(old):
            return None
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        text = new[at + len(said) :]
        more = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self._check_words(tokenizer, more)
        ids = self._ids
        check_length(self._model, torch.cat([ids.cpu(), more], dim=1))
        if ids[0, -1] == more[0, 0]:  # what ends an answer was generated, and stands in the text
            more = more[:, 1:]
        return torch.cat([ids, more.to(ids.device)], dim=1)

    def _check_words(self, tokenizer: Any, ids: torch.Tensor) -> None:
        """The first turn's text passes a processor, which counts pictures; others pass here."""
        tokens = family_of(self._model).placeholders(self._model).values()
        found = set(ids.flatten().tolist()) & set(tokens)
        if found:
            raise VLMCompressError(
                f"{tokenizer.decode(found.pop())} in a question stands for a picture, and all of "
                "them are given before the first question: leave it out"
            )


def _conversation(media: Sequence[Any], turns: Sequence[Answer], question: str) -> list[Turn]:
    """All turns and the question, as chat templates take them; the media stand before the first."""
    texts = [*(turn.question for turn in turns), question]
    found: list[Turn] = []
    for number, text in enumerate(texts):
        found.append(_turn("user", text, media if number == 0 else ()))
        if number < len(turns):
            found.append(_turn("assistant", turns[number].answer))
    return found


def _turn(role: str, text: str, media: Sequence[Any] = ()) -> Turn:
    pictures = [{"type": "video" if isinstance(one, Video) else "image"} for one in media]
    return {"role": role, "content": [*pictures, {"type": "text", "text": text}]}
