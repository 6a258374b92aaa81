"""One law: what is measured, what is allowed, and how a result comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.laws.report import LawResult, State


class VoidError(Exception):
    """A law that cannot be asked of this model; the message says why."""


class BrokenError(Exception):
    """A law that does not hold; the message says how."""


@dataclass(frozen=True)
class Law:
    """What is asked, and of which method."""

    name: str
    method: str | None
    figure: Callable[[], float]
    """Measures; raises `VoidError`, or `BrokenError` where nothing can be measured."""
    allowed: float = 0.0
    at_least: bool = False

    def ask(self, medium: str) -> LawResult:
        """Measure and judge."""
        figure: float | None = None
        state: State
        reason: str | None = None
        try:
            figure = self.figure()
            if math.isnan(figure):
                figure = None
                raise BrokenError("not a number")
            good = figure >= self.allowed if self.at_least else figure <= self.allowed
            state = "holds" if good else "FAILS"
        except VoidError as error:
            state, reason = "void", str(error)
        except torch.OutOfMemoryError as error:
            raise VLMCompressError(f"out of memory: {first_line(error)}") from error
        except Exception as error:  # a broken adapter may raise anything anywhere
            known = isinstance(error, BrokenError | VLMCompressError)
            kind = "" if known else f"{type(error).__name__}: "
            state, reason = "FAILS", kind + first_line(error)
        return LawResult(
            medium, self.name, self.method, state, figure, self.allowed, self.at_least, reason
        )


def first_line(error: BaseException) -> str:
    """What an error says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def difference(one: Tensor, other: Tensor, relative: bool = True) -> float:
    """The largest difference, as a share of the largest value; NaN where either has one."""
    if one.shape != other.shape:
        raise BrokenError(f"logits of shape {tuple(one.shape)}, not {tuple(other.shape)}")
    one, other = one.double(), other.double()
    # Some heads close tokens with -inf.
    off = torch.where(one == other, 0.0, one - other).abs().max()
    size = other[other.isfinite()].abs().max() if relative else 1.0
    return float(off / size)


def steps_apart(
    one: Sequence[tuple[Tensor, Tensor]],
    other: Sequence[tuple[Tensor, Tensor]],
    relative: bool = True,
) -> float:
    """Of all steps up to the first after which the prompts are not the same any more."""
    off = 0.0
    for (logits, ids), (other_logits, other_ids) in zip(one, other, strict=True):
        found = difference(logits, other_logits, relative)
        off = found if not found <= off else off
        if not torch.equal(ids, other_ids):
            break
    return off
