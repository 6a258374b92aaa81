"""Scores of answers, by name.

Each gives an answer 0 to 1, and the score of a task is the mean; `f1` sums up yes/no answers.
"""

from __future__ import annotations

import abc
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import VLMCompressError
from vlmcompress.registry import Registry


@dataclass(frozen=True)
class Metric(abc.ABC):
    """How right an answer is. The fields of a metric are its options."""

    wants: ClassVar[str] = "a text"
    """What a right answer looks like."""

    @abc.abstractmethod
    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """How right an answer is, from 0 to 1.

        Args:
            answer: of the model.
            targets: the right answers.
            choices: what there was to choose from, where a question has choices.
        """

    def check(self, targets: Sequence[str], choices: Sequence[str] = ()) -> None:
        """Raise a VLMCompressError if the data must be wrong: a right answer that is not right."""
        for target in targets:
            if self.score(target, [target], choices) < 1:
                raise VLMCompressError(f"answer {target!r} must be {self.wants}")


METRICS: Registry[Metric] = Registry("metric", f"{__name__}:Metric")
for _name, _entry in {
    "exact": "metrics:Exact",
    "choice": "metrics:Choice",
    "yes_no": "metrics:YesNo",
    "vqa": "vqa:Vqa",
    "anls": "near:Anls",
    "relaxed": "near:Relaxed",
    "iou": "near:Iou",
}.items():
    METRICS.register(_name, f"vlmcompress.eval.metrics.{_entry}")


@dataclass(frozen=True)
class Exact(Metric):
    """1 if the answer is one of the targets, both as `normalize` has them."""

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 or 0."""
        return float(normalize(answer) in map(normalize, targets))


_BEFORE = "\"'`([{\u201c\u2018"
_AFTER = "\"'`)]}\u201d\u2019.,;:!?"
"""Punctuation around an answer. Signs that change a value, such as - % $, are not among it."""


def normalize(text: str) -> str:
    """Lower case, single spaces, without punctuation around it and without a leading article.

    Nothing is taken away that is all there is: "a" stays "a".
    """
    text = " ".join(text.casefold().split())
    bare = text.rstrip(_AFTER + " ").lstrip(_BEFORE + " ") or text
    return re.sub(r"^(?:a|an|the) ", "", bare)


_ALONE = r"(?!\s*(?:,|/|&|\bor\b|\band\b)\s*\(?[A-Za-z]\b\)?(?:\W|$))"
"""No second letter beside it: "A or B" names none."""
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:,]?")
_LETTER_FIRST = re.compile(r"\(?([A-Za-z])(?:[.:]|\)[.:]?)\s")
_LETTER_APART = re.compile(r"\(?([A-Z])\)?(?:[^\S\n]*\n|\s+[-\u2013\u2014]\s)")
_OPTION = re.compile(
    rf"(?:the )?(?:option|choice|letter)\s*:?\s*\(?([A-Z])\b\)?(?=[^\w\s]|\n|$){_ALONE}", re.I
)
_LETTER_TOLD = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is|\s*:)\s*(?:(?:the\s+)?(?:option|choice|letter)\s+)?)"
    rf"\(?([A-Z]\b|[a-z](?=\)?\s*(?:[.,:;!]|$))){_ALONE}"
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>|\\boxed\{(?:\\text\{)?(.*?)\}", re.I | re.S)
_EMPHASIS = re.compile(r"\*\*|__|[*`$]")


@dataclass(frozen=True)
class Choice(Metric):
    """1 if the answer names the right choice.

    The whole text of a choice names it (compared as in `exact`); so does its letter, A for the
    first: "B", "(b).", "B. blue", "B) blue", "B - blue", "B" on a line of its own before others,
    "Option B", "The answer is B". Emphasis of Markdown is not looked at, and of an answer with
    "<answer>B</answer>" or "\\boxed{B}" only that part. Where letter and text disagree, the letter
    holds. An answer that names none, or several, or mentions a choice in a longer sentence, is
    wrong; some benchmarks guess there.
    """

    wants: ClassVar[str] = "the letter or the text of a choice"

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 or 0."""
        picked = _pick(answer, choices)
        return float(picked is not None and picked in [_pick(t, choices) for t in targets])

    def check(self, targets: Sequence[str], choices: Sequence[str] = ()) -> None:
        """Raise a VLMCompressError unless two or more different choices hold the targets."""
        texts = [normalize(choice) for choice in choices]
        if not 2 <= len(texts) <= 26 or len(set(texts)) < len(texts):
            raise VLMCompressError(
                f"the metric choice needs 2 to 26 different choices, got {list(choices)}"
            )
        for place, text in enumerate(texts):
            letter_of = string.ascii_lowercase.find(text) if len(text) == 1 else place
            if letter_of in range(len(texts)) and letter_of != place:
                raise VLMCompressError(f"choice {text!r} is the letter of another choice")
        super().check(targets, choices)


def _pick(text: str, choices: Sequence[str]) -> int | None:
    """Which choice a text names."""
    texts = [normalize(choice) for choice in choices]
    for form in (text, _bare(text)):
        if normalize(form) in texts:
            return texts.index(normalize(form))
    letters = {letter.upper() for letter in _letters(_bare(text))}
    place = ord(letters.pop()) - ord("A") if len(letters) == 1 else len(choices)
    return place if place < len(choices) else None


def _bare(text: str) -> str:
    """The part that is marked as the answer, if there is one, without emphasis."""
    marked = {"".join(pair).strip() for pair in _TAGGED.findall(text)}
    part = marked.pop() if len(marked) == 1 else text
    return _EMPHASIS.sub("", part).strip()


def _letters(text: str) -> list[str]:
    """The letters that a text names as its answer; more than one where it contradicts itself."""
    for form in (_LETTER.fullmatch(text), _LETTER_FIRST.match(text), _LETTER_APART.match(text)):
        if form:
            rest = _LETTER.fullmatch(text[form.end() :].strip())
            return [form[1], *([rest[1]] if rest else [])]
    option = _OPTION.match(text)
    return [option[1]] if option else _LETTER_TOLD.findall(text)


@dataclass(frozen=True)
class YesNo(Metric):
    """1 if the first "yes" or "no" of the answer is the target's.

    POPE (Li et al., 2023, arXiv 2305.10355) takes the first sentence for "no" if it has one of the
    words "no" and "not" in it and for "yes" otherwise. Here an answer without either is wrong.
    """

    wants: ClassVar[str] = "yes or no"

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 or 0."""
        said = yes_or_no(answer)
        return float(said is not None and said in map(yes_or_no, targets))


def yes_or_no(text: str) -> str | None:
    """The first word of a text that is "yes" or "no"; None without one."""
    found = re.search(r"\b(yes|no)\b", text.lower())
    return found[1] if found else None


def f1(answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """What POPE (arXiv 2305.10355) reports of yes/no answers; "yes" is the positive class.

    precision = TP / (TP + FP), recall = TP / (TP + FN), f1 = 2 TP / (2 TP + FP + FN), each 0 where
    nothing is divided; yes_share = (TP + FP) / n; accuracy as `yes_no` has it. An answer with
    neither word is not a "yes" and counts as wrong.

    Args:
        answers: of the model.
        targets: one right answer for each.

    Raises:
        VLMCompressError: their numbers differ, or there are none.
    """
    if len(answers) != len(targets) or not answers:
        raise VLMCompressError(
            f"F1 needs as many answers as targets, got {len(answers)} and {len(targets)}"
        )
    pairs = [(yes_or_no(a), yes_or_no(t)) for a, t in zip(answers, targets, strict=True)]
    hits = pairs.count(("yes", "yes"))
    said = sum(answer == "yes" for answer, _ in pairs)
    wanted = sum(target == "yes" for _, target in pairs)
    return {
        "precision": hits / said if said else 0.0,
        "recall": hits / wanted if wanted else 0.0,
        "f1": 2 * hits / (said + wanted) if said + wanted else 0.0,
        "yes_share": said / len(pairs),
        "accuracy": sum(a is not None and a == t for a, t in pairs) / len(pairs),
    }
