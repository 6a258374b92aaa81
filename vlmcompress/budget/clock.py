"""The clock of everything that is timed: budgets in milliseconds, reports, profiles, benchmarks.

CUDA returns before the work is done. `now` waits for it, and so may not be used inside a call that
is to run at full speed; `mark` puts an event on the stream instead, which is read afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vlmcompress.ops.proving.decision import no_proofs

Mark = float | torch.cuda.Event


def wait(device: torch.device) -> None:
    """Return when all that was begun on `device` has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Milliseconds of a clock that only ever goes forward, when `device` has nothing left to do."""
    wait(device)
    return time.perf_counter() * 1000


def elapsed(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call of `run`, with `device` idle before and after it."""
    start = now(device)
    with no_proofs():
        run()
    return now(device) - start


def mark(device: torch.device) -> Mark:
    """A point in time on `device`; on CUDA an event, so that nothing waits."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds(start: Mark, end: Mark) -> float:
    """Time between two marks of one device; on CUDA it waits for the second."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(start.elapsed_time(end))
    assert isinstance(start, float)
    assert isinstance(end, float)
    return (end - start) * 1000
