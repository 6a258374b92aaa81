"""Which implementation of an op runs: plain torch, or its Triton kernel."""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor

from vlmcompress.errors import VLMCompressError

VARIABLE = "VLMCOMPRESS_OPS"
CHOICES = ("auto", "torch", "triton")

PAYS: frozenset[str] = frozenset()
"""Ops whose kernel was measured faster than torch on a card: "auto" takes these and no other.

Empty, for none of them ran on a card yet: `make gpu-figures` measures all and says what belongs
here.
"""


def use_triton(op: str, *tensors: Tensor) -> bool:
    """Whether the Triton kernel of `op` runs on `tensors`.

    The environment variable VLMCOMPRESS_OPS decides: "torch" never, "triton" always, "auto" (the
    default) where all tensors are on a CUDA device and the kernel is known to pay.

    Raises:
        VLMCompressError: the variable says something else, or "triton" where it cannot run.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise VLMCompressError(f"{VARIABLE}={choice!r} is not possible: set {', '.join(CHOICES)}")
    if choice == "torch" or (choice == "auto" and op not in PAYS):
        return False
    on_cuda = all(tensor.is_cuda for tensor in tensors)
    installed = importlib.util.find_spec("triton") is not None
    if choice == "auto":
        return on_cuda and installed
    if not installed:
        raise VLMCompressError(f"{VARIABLE}=triton: triton is not installed, pip install triton")
    if not on_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        devices = ", ".join(sorted({tensor.device.type for tensor in tensors}))
        raise VLMCompressError(
            f"{VARIABLE}=triton needs tensors on a CUDA device, {op} got {devices}; "
            "on a CPU set TRITON_INTERPRET=1 (slow, for tests)"
        )
    return True
