"""VQA accuracy: right is what people say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.metrics.metrics import Metric

_ENOUGH = 3
"""Annotators who have to agree with an answer."""


@dataclass(frozen=True)
class Vqa(Metric):
    """VQA accuracy (Antol et al., 2015, arXiv 1505.00468; Goyal et al., 2017, arXiv 1612.00837).

    Every annotator is left out in turn; an answer scores min(1, n / 3) with n of the others who
    said the same, and the score is the mean over those left out. Texts are compared as `normalize`
    has them, which the official code does only where annotators disagree.
    """

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """How right an answer is, from 0 to 1; `targets` are what each annotator said."""
        given = normalize(answer)
        same = [normalize(target) == given for target in targets]
        return sum(min(1.0, (sum(same) - out) / _ENOUGH) for out in same) / len(same)

    def check(self, targets: Sequence[str], choices: Sequence[str] = ()) -> None:
        """Raise a VLMCompressError if too few annotators answered for a score of 1."""
        if len(targets) <= _ENOUGH:
            raise VLMCompressError(
                f"the metric vqa needs the answers of {_ENOUGH + 1} or more people, one of each, "
                f"got {len(targets)}; the metric exact takes fewer"
            )


_ARTICLES = frozenset(("a", "an", "the"))
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(value) for value, word in enumerate(_WORDS)} | {"none": "0"}
_NEGATED = """ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan
    shouldn wasn weren won wouldn"""
_SHORTENED = """could've i've might've must've should've they've we've would've you've he'd it'd
    they'd who'd you'd it'll that'll they'll who'll you'll he's here's how's she's that's there's
    what's where's who's i'm they're you're ma'am o'clock y'all"""
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in [*(f"{stem}'t" for stem in _NEGATED.split()), *_SHORTENED.split()]
}
"""Without those whose letters are another word, such as its, were, well, ill, shed and lets."""


def normalize(text: str) -> str:
    """A text as VQA compares it, see https://visualqa.org/evaluation.html.

    Lower case; no period but a decimal point; a space for punctuation other than apostrophe and
    colon, nothing for a comma between digits; without articles; digits for the numbers up to ten;
    an apostrophe where a contraction lacks it.

    Two deviations from the official code: signs are replaced one by one (there all of a kind are
    deleted as soon as one stands beside a space), and of double contractions ("couldn't've") none
    is mended. As there, the signs # $ % & * ^ | ~ stay.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"\.(?!\d)", "", text)
    words = re.sub(r"[;/\[\]\"{}()=+\\_\-><@`,?!]", " ", text).split()
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(_DIGITS.get(word) or _CONTRACTIONS.get(word, word) for word in kept)
