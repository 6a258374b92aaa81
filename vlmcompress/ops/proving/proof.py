"""Kernel and torch on the same inputs: whether they agree, and which is faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vlmcompress.ops.backend import forced
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.ops.proving.trials import TRIALS, Draws, Result
from vlmcompress.ops.proving.verdicts import Case, Verdict

LIMIT = 2.0
"""Seconds after which no further run of a case begins."""
_RUNS = 5


def prove(case: Case, device: torch.device, seconds: float = LIMIT) -> Verdict:
    """Run both once and compare, then a few times in turn and compare their medians.

    No run begins after `seconds`; one that runs is not stopped. If that leaves no time for a timed
    pair (compiling took it all), the verdict is "untimed".
    """
    trial, end = TRIALS[case.op], _now(device) + seconds
    times: dict[str, list[float]] = {"torch": [], "triton": []}
    try:
        with torch.no_grad(), collected(Checks()):
            draws = Draws(device, getattr(torch, case.dtype))
            run = trial.prepare(draws, **dict(case.sizes))
            expected = _run("torch", run)
            if _now(device) > end:
                return Verdict("untimed", "torch alone took longer than there is")
            try:
                found = _run("triton", run)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # A machine without a C compiler, or a card that the kernel does not fit.
                return Verdict("broken", f"{type(error).__name__}: {' '.join(str(error).split())}")
            if detail := difference(expected, found, trial.rtol, trial.atol):
                return Verdict("wrong", detail)
            while len(times["torch"]) < _RUNS and _now(device) < end:
                for name, spent in times.items():
                    start = _now(device)
                    _run(name, run)
                    spent.append(1000 * (_now(device) - start))
    except torch.OutOfMemoryError:
        return Verdict("untimed", "there is not enough memory for a trial")
    if not times["torch"]:
        return Verdict("untimed", "compiling took longer than there is")
    plain, kernel = (round(statistics.median(found), 4) for found in times.values())
    return Verdict("faster" if kernel < plain else "slower", "", plain, kernel)


def difference(expected: Result, found: Result, rtol: float, atol: float) -> str:
    """What is different, in words; empty where nothing is but for rounding.

    Whole numbers must be equal. `rtol` comes on top of the rounding of the dtype.
    """
    if len(found) != len(expected):
        return f"{len(found)} results where torch gives {len(expected)}"
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{_kind(other)} where torch gives {_kind(one)}"
        if one.is_floating_point():
            relative = rtol + torch.finfo(one.dtype).eps
            alike = torch.isclose(
                other.float(), one.float(), rtol=relative, atol=atol, equal_nan=True
            )
        else:
            alike = one == other
        lost = int((~alike).sum())
        if lost:
            return f"{lost} of {one.numel()} values differ from those of torch"
    return ""


def _run(choice: str, run: Callable[[], Result]) -> Result:
    with forced(choice):
        return run()


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


def _now(device: torch.device) -> float:
    """Seconds, when `device` has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
