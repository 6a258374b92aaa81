"""Which implementation of an op runs: plain torch, or its Triton kernel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError

VARIABLE = "VLMCOMPRESS_OPS"
CHOICES = ("auto", "torch", "triton")

_forced: ContextVar[str | None] = ContextVar("forced", default=None)


def use_triton(op: str, *tensors: Tensor, **sizes: int) -> bool:
    """Whether the Triton kernel of `op` runs on `tensors`.

    The environment variable VLMCOMPRESS_OPS decides: "torch" never, "triton" always, "auto" (the
    default) where all tensors are on one CUDA device and the kernel was proven there, for shapes
    like these, to give what torch gives and to be faster (`vlmcompress.ops.proving`).

    Args:
        op: its name.
        tensors: that it reads; the dtype of the first counts.
        sizes: what its time depends on, by the names that `proving.trials` gives them.

    Raises:
        VLMCompressError: the variable says something else, or "triton" where it cannot run.
    """
    choice = _forced.get() or os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise VLMCompressError(f"{VARIABLE}={choice!r} is not possible: set {', '.join(CHOICES)}")
    if choice == "torch":
        return False
    on_cuda = all(tensor.is_cuda for tensor in tensors)
    if choice == "auto" and not on_cuda:
        return False
    installed = importlib.util.find_spec("triton") is not None
    if choice == "auto":
        if not installed or len({tensor.device for tensor in tensors}) != 1:
            return False
        from vlmcompress.ops.proving.decision import kernel_pays

        return kernel_pays(op, tensors[0], sizes)
    if not installed:
        raise VLMCompressError(f"{VARIABLE}=triton: triton is not installed, pip install triton")
    if not on_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        devices = ", ".join(sorted({tensor.device.type for tensor in tensors}))
        raise VLMCompressError(
            f"{VARIABLE}=triton needs tensors on a CUDA device, {op} got {devices}; "
            "on a CPU set TRITON_INTERPRET=1 (slow, for tests)"
        )
    return True


@contextmanager
def forced(choice: str) -> Iterator[None]:
    """Let every op run as `choice` says during the block, in this thread, whatever the variable."""
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)
