"""A threshold in place of a budget: what repeats is dropped, however many tokens that is."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.method import Method
from vlmcompress.ops.questions import Asking
from vlmcompress.tokens import Grid


class _Given:
    """`adaptive`: of the class False, of an instance whether it has a threshold."""

    def __get__(self, method: ByThreshold | None, owner: type[ByThreshold]) -> bool:
        return method is not None and method.threshold is not None


@dataclass(frozen=True)
class ByThreshold(Method):
    """A method that takes a threshold where others take a budget.

    Content then decides how many tokens stay, so that a prompt of several images keeps another
    number of each; a threshold and a budget do not go together. At least one token always stays.
    """

    adaptive = _Given()

    threshold: float | None = field(default=None, kw_only=True)
    """Instead of a budget: the distance up to which a token repeats another, and goes."""

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """With a threshold and no budget all of them: at most so many stay."""
        if budget is None and self.threshold is not None:
            return len(grid)
        found: int = super().keep_count(grid, budget)  # type: ignore[misc]
        return found

    def check_threshold(self, below: float) -> None:
        """Refuse a threshold that is no number from 0 to less than `below`.

        Raises:
            VLMCompressError: it is.
        """
        if self.threshold is not None and not 0 <= self.threshold < below:
            raise VLMCompressError(
                f"{self.name}: threshold must be from 0 to below {below:g}, got {self.threshold}"
            )

    def check_budget(self, given: object) -> None:
        """Refuse a budget beside a threshold.

        Args:
            given: the budget, for the message.

        Raises:
            BudgetError: the method has a threshold.
        """
        if self.threshold is not None:
            raise BudgetError(
                f"{self.name}: with threshold={self.threshold:g} the content decides how many "
                f"tokens stay: leave out the budget (got {given}) or the threshold"
            )


def staying(fresh: Tensor) -> Asking[Tensor]:
    """[K] int64 ascending: the places where `fresh` [N] bool is true, at least one.

    How many they are is asked with the questions of all images. Where none is true the first
    token stays.
    """
    known = yield fresh
    places = known.nonzero()[:, 0]
    return (places if len(places) else torch.zeros(1, dtype=torch.int64)).to(fresh.device)
