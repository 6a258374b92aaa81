"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers.

Or what a call may cost up to its first token, which becomes a share of the tokens once the prompt
is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, SupportsFloat

import numpy as np

from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.shares import steps
from vlmcompress.tokens import Grid, Layout

_ALLOWED = (
    'a count such as 64 or a share such as "25%" or 0.25, for each frame "16 per frame", or up to '
    'the first token a share of the FLOPs such as "0.4 flops" or a time such as "120 ms"'
)
_MOST = 10**12
"""No prompt has so many tokens, no call takes so many milliseconds."""
_SHOWN = 60
"""Letters of a malformed budget that a message repeats."""
_PATTERN = re.compile(
    r"(?P<number>[+-]?\d+(\.\d*)?|[+-]?\.\d+)"
    r"(\s*(?P<percent>%?)(?P<frames>\s+per\s+frame)?|\s*(?P<cost>flops|ms))"
)


@dataclass(frozen=True)
class Budget:
    """Visual tokens per image (per clip for a video), mean over decoder layers; or a cost."""

    amount: float
    unit: Literal["tokens", "percent", "flops", "ms"]
    """"flops" is a share, up to 1, of what the full model computes up to the first token, and "ms"
    the time to that token. One share of the tokens of all images then meets the cost."""
    per_frame: bool = False
    """Whether each temporal step of a clip's grid gets this many; an image is one step."""

    @classmethod
    def parse(cls, given: int | SupportsFloat | str | Budget) -> Budget:
        """Read `64`, `"64"`, `0.25`, `"25%"`, `"16 per frame"`, `"0.4 flops"` or `"120 ms"`.

        An integer of any kind is a count, a broken number above 0 to 1.0 a share of the tokens;
        any other must be whole and is a count. In text a point tells the two apart.

        Raises:
            BudgetError: malformed, not positive, a broken count, or a share above the whole.
        """
        if isinstance(given, Budget):
            return given
        text = _text(given)
        found = None if text is None else _PATTERN.fullmatch(text.strip())
        if found is None:
            raise _refused(given, "is not understood")
        number, per_frame = found["number"], found["frames"] is not None
        amount = float(number)
        if amount <= 0:
            raise _refused(given, "must be above zero")
        if amount > _MOST:
            raise _refused(given, "is more than there can be")
        if found["cost"]:
            if found["cost"] == "flops" and amount > 1:
                raise BudgetError(
                    f"budget {_shown(given)} is more than the full model computes: give above 0 to "
                    '1, such as "0.4 flops"'
                )
            return cls(amount, found["cost"])  # type: ignore[arg-type]
        if found["percent"]:
            if amount > 100:
                raise BudgetError(f"budget {_shown(given)} is above 100%")
            return cls(amount, "percent", per_frame)
        if "." in number and amount <= 1:
            # Rounded: 100 * 0.07 is not 7.
            return cls(float(f"{100 * amount:.12g}"), "percent", per_frame)
        if amount != int(amount):
            raise _refused(given, "is not a whole number of tokens, and no share of them up to 1.0")
        return cls(amount, "tokens", per_frame)

    @property
    def is_cost(self) -> bool:
        """Whether it says what a call may cost, not how many tokens it may keep."""
        return self.unit in ("flops", "ms")

    def tokens(self, layout: Layout | Grid) -> float:
        """The budget of one image in tokens; an image below the budget is kept whole.

        A share is rounded to whole tokens, half to even, and is at least one; where it is one per
        frame, of each frame.

        Raises:
            BudgetError: it is a cost, which no image has by itself.
        """
        if self.is_cost:
            raise BudgetError(
                f"budget {self} becomes a number of tokens only with a model and a prompt: give a "
                'count such as 64 or a share such as "25%"'
            )
        frames = steps(layout) if self.per_frame else 1
        count = len(layout) // frames
        if self.unit == "percent":
            return max(1, round(self.amount / 100 * count)) * frames
        return min(self.amount, count) * frames

    def __str__(self) -> str:
        unit = {"tokens": "", "percent": "%"}.get(self.unit, f" {self.unit}")
        number = np.format_float_positional(self.amount, trim="-")
        return f"{number}{unit}{' per frame' if self.per_frame else ''}"


def _text(given: object) -> str | None:
    """A budget as text, numbers of any kind among them; None for what is none."""
    if isinstance(given, str):
        return given
    if getattr(given, "ndim", None) == 0 and hasattr(given, "item"):
        given = given.item()  # of numpy and torch
    if isinstance(given, bool):
        return None
    if isinstance(given, Integral):
        # Python does not print integers of thousands of digits.
        return str(min(max(int(given), -1), _MOST + 1))
    if isinstance(given, Real):
        return np.format_float_positional(float(given), trim="0")
    return None


def _shown(given: object) -> str:
    """A budget as it was given, cut where it is too long to be read."""
    if isinstance(given, Integral) and abs(int(given)) > 10**_SHOWN:
        return "of so many digits"
    text = repr(given)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _refused(given: object, why: str) -> BudgetError:
    return BudgetError(f"budget {_shown(given)} {why}: give {_ALLOWED}")
