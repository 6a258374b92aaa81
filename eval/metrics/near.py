"""Metrics that take what is near: texts with slips, numbers and boxes that are a little off."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.metrics.metrics import Metric


@dataclass(frozen=True)
class Anls(Metric):
    """Average normalized Levenshtein similarity of DocVQA (Biten et al., 2019, arXiv 1907.00490).

    NL = edit distance / length of the longer text, in lower case and with single spaces; the score
    is 1 - NL of the nearest target if NL < `threshold`, else 0. lmms-eval also gives NL = 0.5 half
    a point; the paper does not.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        _check_share("threshold", self.threshold)

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """0, or 1 - `threshold` to 1."""
        with needs_eval():
            from rapidfuzz.distance import Levenshtein
        given, *wanted = (" ".join(text.lower().split()) for text in (answer, *targets))
        distance = min(Levenshtein.normalized_distance(given, target) for target in wanted)
        return 1 - distance if distance < self.threshold else 0.0


@dataclass(frozen=True)
class Relaxed(Metric):
    """Relaxed accuracy of ChartQA (Masry et al., 2022, arXiv 2203.10244, section 5.1).

    Numbers are right within |answer - target| <= `tolerance` |target|, everything else if the text
    is the same but for case and a period behind it. "5%" is 0.05, as in the code of Pix2Struct, so
    that "5" is wrong for it. Pix2Struct compares a target of zero, and "1,000", as text; here they
    are numbers.
    """

    tolerance: float = 0.05

    def __post_init__(self) -> None:
        _check_share("tolerance", self.tolerance)

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 or 0."""
        return float(any(self._right(answer, target) for target in targets))

    def _right(self, answer: str, target: str) -> bool:
        given, wanted = _number(answer), _number(target)
        if given is None or wanted is None:
            return _plain(answer) == _plain(target)
        if wanted == 0:
            return given == 0
        return abs(given - wanted) / abs(wanted) <= self.tolerance


_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?%?")


def _plain(text: str) -> str:
    """Lower case, without a sentence's end, unless that is all there is."""
    text = text.strip().lower()
    return text.rstrip(".!").rstrip() or text


def _number(text: str) -> float | None:
    text = _plain(text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(r"[\s\])]*,[\s\[(]*".join([_NUMBER] * 4))


@dataclass(frozen=True)
class Iou(Metric):
    """1 if the box of the answer overlaps a target's by `threshold` or more; without one the IoU.

    IoU = area of the intersection / area of the union. A box is its left, top, right and bottom in
    the units of the targets, such as "[10, 20, 110, 80]" or "(10,20),(110,80)"; the first one in
    the answer counts, and one without area overlaps nothing. Accuracy at IoU 0.5 is what is
    reported for RefCOCO (Yu et al., 2016, arXiv 1608.00272).
    """

    wants: ClassVar[str] = 'a box such as "[10, 20, 110, 80]" with its corners in this order'

    threshold: float | None = 0.5

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_share("threshold", self.threshold)

    def score(self, answer: str, targets: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 or 0; with `threshold` None the largest IoU."""
        given = _box(answer)
        boxes = [box for target in targets if (box := _box(target)) is not None]
        best = max((_overlap(given, box) for box in boxes), default=0.0) if given else 0.0
        return best if self.threshold is None else float(best >= self.threshold)


Box = tuple[float, float, float, float]


def _box(text: str) -> Box | None:
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = (float(value) for value in found.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def _check_share(name: str, value: object) -> None:
    """Raise a VLMCompressError unless an option is above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise VLMCompressError(f"{name} must be a number above 0 and at most 1, got {value!r}")
