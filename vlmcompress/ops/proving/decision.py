"""Whether the kernel of an op runs: what is known of it, or else found out on the spot."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock

import torch
from torch import Tensor

from vlmcompress.ops.proving import verdicts
from vlmcompress.ops.proving.proof import LIMIT, prove
from vlmcompress.ops.proving.verdicts import Case, Verdict

_paused: ContextVar[bool] = ContextVar("paused", default=False)
_lock = RLock()
_spent = 0.0
_WARNED = {
    "wrong": "gives wrong results and is switched off (please report this line to the authors)",
    "broken": "cannot run here",
}


@contextmanager
def no_proofs() -> Iterator[None]:
    """Let no kernel be judged during the block, in this thread: something is being timed.

    What is known already counts; all else runs in torch.
    """
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def kernel_pays(op: str, like: Tensor, sizes: Mapping[str, int]) -> bool:
    """Whether the kernel is right and the faster one, on the device and in the dtype of `like`.

    The first question about shapes of a kind takes up to `LIMIT` seconds. It is not asked, and
    torch runs, while a graph is captured or compiled and inside `no_proofs`.
    """
    if torch.compiler.is_compiling():
        return False
    case, card = Case.of(op, sizes, like.dtype), verdicts.card_of(like.device)
    found = verdicts.known(card, case)
    if found is None:
        if _paused.get() or torch.cuda.is_current_stream_capturing():
            return False
        with _lock:  # another thread may have asked the same meanwhile
            found = verdicts.known(card, case) or judge(card, case, like.device)
    return found.outcome == "faster"


def judge(card: str, case: Case, device: torch.device, seconds: float = LIMIT) -> Verdict:
    """Try the kernel, keep the verdict, and warn if it is wrong."""
    global _spent
    start = time.perf_counter()
    found = prove(case, device, seconds)
    verdicts.keep(card, case, found)
    _spent += time.perf_counter() - start
    if found.outcome in _WARNED:
        warnings.warn(
            f"the Triton kernel of {case.op} {_WARNED[found.outcome]}, torch does its work: "
            f"{found.detail} ({case}; {card})",
            stacklevel=2,
        )
    return found


def spent() -> float:
    """Milliseconds that this process has judged kernels for so far."""
    return _spent * 1000
