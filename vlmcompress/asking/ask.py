"""`ask` and `compare`: one question to one model in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from vlmcompress import defaults
from vlmcompress.arguments import check_count, check_words
from vlmcompress.asking.answer import Answer
from vlmcompress.asking.asker import Asker
from vlmcompress.asking.comparison import Comparison
from vlmcompress.asking.setting import FULL, BudgetLike, MethodLike, Setting, setting_of
from vlmcompress.defaults import ANSWER_TOKENS
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.given import MediaLike, media_of
from vlmcompress.tuned import ProfileLike, all_asked_for, check_fits


def ask(
    model: Any,
    processor: Any,
    media: MediaLike,
    question: str,
    method: MethodLike | None = None,
    budget: BudgetLike = None,
    *,
    max_new_tokens: int = ANSWER_TOKENS,
    positions: Literal["keep", "renumber"] = "keep",
    frames: int | None = None,
    fps: float | None = None,
    text_tower: Any = None,
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
    **options: Any,
) -> Answer:
    """Ask a model one question about pictures or clips, on fewer visual tokens.

    The model is compressed for this call only and is as it was afterwards, also after an error.

        >>> import vlmcompress
        >>> model, processor = vlmcompress.load("tiny-llava")
        >>> found = vlmcompress.ask(model, processor, "a.png", "what is this?", budget=36)
        >>> found.answer, found.after
        >>> found.overlay()  # a PIL image: what was kept, with question and answer below it

    Args:
        model: a Hugging Face vision-language model of a supported type; see `load`.
        processor: its own; its chat template is used.
        media: a path, a PIL image, an array [H, W, 3] or, for a clip, [frames, H, W, 3] of uint8, a
            `Video`, or a list of these. A path of a video or an animated GIF is a clip.
        question: a text.
        method: as for `compress`: a name ("divprune"), a composition ("divprune+fastv(k=3)"),
            method objects, or "auto". "full" keeps every token. Default: "divprune" at 25%.
        budget: visual tokens per image or clip, mean over decoder layers: 64, "25%", "16 per
            frame"; or a cost, "0.4 flops", "120 ms". Default: the method's own setting, or 25%
            where it has none.
        max_new_tokens: longest answer; decoding is greedy.
        positions: whether kept tokens keep their position ids; see `compress`.
        frames: sampled of a clip that is read from a file, spread evenly.
        fps: frames a second sampled of such a clip instead, or of a clip given as an array.
        text_tower: see `compress`.
        max_memory: what the vision encoder may take for a clip, as "2GB"; see `compress`.
        profile: in the place of a method; see `compress`.
        **options: fields of the method, for example `seed=1`.

    Returns:
        `answer` (the text), `report` (what the call did), `milliseconds` (of each stage) and
        `overlay()`. `answer, report = vlmcompress.ask(...)` works as well.

    Raises:
        VLMCompressError: bad media, an empty question, or whatever `compress` refuses. The message
            says what was given and what is possible.
    """
    setting = setting_of(method, budget, options, positions, text_tower, max_memory, profile)
    return _asker(model, processor, media, question, max_new_tokens, frames, fps).run(setting)


def compare(
    model: Any,
    processor: Any,
    media: MediaLike,
    question: str,
    methods: MethodLike | Sequence[MethodLike] | None = None,
    budgets: BudgetLike | list[BudgetLike] | tuple[BudgetLike, ...] = None,
    *,
    repeat: int = 1,
    max_new_tokens: int = ANSWER_TOKENS,
    frames: int | None = None,
    fps: float | None = None,
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
) -> Comparison:
    """Ask the same question on all visual tokens and on fewer, several methods side by side.

    After one warm-up of each, all settings take turns, so that their times can be compared.

        >>> found = vlmcompress.compare(model, processor, "a.png", "what is this?",
        ...                             methods=["divprune", "fastv"], budgets=["50%", "25%"])
        >>> print(found)     # a table: answer, tokens, times
        >>> found.overlay()  # a PIL image: what each of them kept

    Args:
        model: as for `ask`, like `media`, `question`, `max_new_tokens`, `frames` and `fps`.
        processor: the model's own.
        media: one picture or clip, or a list.
        question: a text.
        methods: one or several; see `ask`. Default: "divprune", or what the profile takes.
        budgets: one or several; every method is asked at each. None takes each method's own.
        repeat: timed rounds; medians are shown.
        max_memory: see `ask`; it holds for all visual tokens, too.
        profile: what it takes at each budget is asked as "auto", beside the methods that are named.

    Returns:
        One `Answer` for "full" and for each setting, in this order. A setting that the method or
        the model refuses is in `refused` with the reason.

    Raises:
        VLMCompressError: as for `ask`, but for a refusal of a single setting; a profile of another
            model is none.
    """
    check_count("repeat", repeat)
    named = (defaults.METHOD,) if methods is None and profile is None else _listed(methods)
    settings = settings_of(all_asked_for(named, profile), budgets, max_memory, profile)
    check_fits(profile, model)
    asker = _asker(model, processor, media, question, max_new_tokens, frames, fps)
    return compared(asker, settings, repeat, replace(FULL, max_memory=max_memory))


def settings_of(
    methods: MethodLike | Sequence[MethodLike],
    budgets: BudgetLike | Sequence[BudgetLike],
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
) -> list[Setting]:
    """Every method at each budget; one that is given alone counts as a list of one.

    "auto" is what the profile takes, where there is one.

    Raises:
        VLMCompressError: see `setting_of`.
    """
    wanted: Sequence[Any] = budgets if isinstance(budgets, list | tuple) else [budgets]
    return [
        setting_of(
            method,
            budget,
            max_memory=max_memory,
            profile=profile if method == defaults.AUTO else None,
        )
        for method in _listed(methods)
        for budget in wanted
    ]


def compared(
    asker: Asker, settings: Sequence[Setting], repeat: int, full: Setting = FULL
) -> Comparison:
    """The answer on all tokens, as `full` says, and in each setting that is not refused."""
    able: list[Setting] = [full]
    refused: dict[str, str] = {}
    asker.run(full)
    for setting in settings:
        try:
            asker.run(setting)
            able.append(setting)
        except VLMCompressError as error:
            refused[setting.name] = str(error)
    return Comparison(asker.rounds(able, repeat), refused)


def _listed(methods: MethodLike | Sequence[MethodLike] | None) -> list[Any]:
    if isinstance(methods, Iterable) and not isinstance(methods, str):
        return list(methods)
    return [] if methods is None else [methods]


def _asker(
    model: Any,
    processor: Any,
    media: MediaLike,
    question: str,
    max_new_tokens: int,
    frames: int | None,
    fps: float | None,
) -> Asker:
    check_words("the question", question)
    return Asker(model, processor, media_of(media, frames, fps), question, max_new_tokens)
