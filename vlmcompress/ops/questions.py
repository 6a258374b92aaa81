"""Computations that must know values of the device, taken forward together.

Such a computation is a generator: it yields a tensor that it must know, or a list of them, is sent
the same on the CPU, and returns its result. What several of them ask at the same step costs one
wait for the device.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from vlmcompress.ops.deferred_checks import Checks

T = TypeVar("T")
Asking = Generator[Tensor | list[Tensor], Any, T]
"""Nothing that belongs to the thread, such as autocast, may be changed across a `yield`."""


def answered(one: Asking[T], checks: Checks | None = None) -> T:
    """The result of a computation.

    Args:
        one: the computation.
        checks: settled with its first question, for the same wait.

    Raises:
        VLMCompressError: a check that was due failed.
    """
    checks = Checks() if checks is None else checks
    answer: Any = None
    while True:
        try:
            asked = one.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        found = checks.read(_listed(asked))
        answer = found[0] if isinstance(asked, Tensor) else found


def abreast(several: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Several computations as one, which asks their nth questions at once."""
    results: dict[int, T] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(several)))
    while answers:
        asked: dict[int, Tensor | list[Tensor]] = {}
        for number, answer in answers.items():
            try:
                asked[number] = several[number].send(answer)
            except StopIteration as done:
                results[number] = done.value
        everything = [x for one in asked.values() for x in _listed(one)]
        found = iter((yield everything) if everything else [])
        for number, one in asked.items():
            mine = [next(found) for _ in _listed(one)]
            answers[number] = mine[0] if isinstance(one, Tensor) else mine
        answers = {number: answers[number] for number in asked}
    return [results[number] for number in range(len(several))]


def _listed(asked: Tensor | list[Tensor]) -> list[Tensor]:
    return [asked] if isinstance(asked, Tensor) else asked
