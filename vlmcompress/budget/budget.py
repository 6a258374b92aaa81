"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers.

Or what a call may cost up to its first token, which becomes a share of the tokens once the prompt
is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.pipeline import steps
from vlmcompress.tokens import Grid, Layout

_ALLOWED = (
    'a count such as 64 or a share such as "25%", for each frame "16 per frame", or up to the '
    'first token a share of the FLOPs such as "0.4 flops" or a time such as "120 ms"'
)
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
    def parse(cls, given: int | float | str | Budget) -> Budget:
        """Read `64`, `"64"`, `"25%"`, `"16 per frame"`, `"0.4 flops"` or `"120 ms"`.

        Raises:
            BudgetError: malformed, not positive, a broken count, or a share above the whole.
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, bool) or not isinstance(given, (int, float, str)):
            raise BudgetError(f"budget {given!r} is not understood: give {_ALLOWED}")
        found = _PATTERN.fullmatch(str(given).strip())
        if found is None:
            raise BudgetError(f"budget {given!r} is not understood: give {_ALLOWED}")
        amount, per_frame = float(found["number"]), found["frames"] is not None
        if amount <= 0:
            raise BudgetError(f"budget {given!r} must be above zero: give {_ALLOWED}")
        if found["cost"]:
            if found["cost"] == "flops" and amount > 1:
                raise BudgetError(
                    f"budget {given!r} is more than the full model computes: give above 0 to 1, "
                    'such as "0.4 flops"'
                )
            return cls(amount, found["cost"])  # type: ignore[arg-type]
        if found["percent"]:
            if amount > 100:
                raise BudgetError(f"budget {given!r} is above 100%")
            return cls(amount, "percent", per_frame)
        if amount != int(amount):
            raise BudgetError(f"budget {given!r} is not a whole number of tokens: give {_ALLOWED}")
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
        return f"{self.amount:g}{unit}{' per frame' if self.per_frame else ''}"
