"""The machine that a profile was made on, and its memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn

from vlmcompress.budget.clock import wait
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.version import __version__

_PROCESS = Path("/proc/self")


def environment(model: nn.Module) -> dict[str, Any]:
    """What times depend on, as plain values.

    Args:
        model: of a supported family.
    """
    any_model: Any = model
    parts, device = ModelParts.of(model), any_model.device
    stacks: dict[str, Any] = {"decoder": parts.lm, "encoder": parts.towers[0]}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        "dtype": str(any_model.dtype).removeprefix("torch."),
        "attention": {name: part.config._attn_implementation for name, part in stacks.items()},
        "decoder_layers": len(parts.layers),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def versions(**others: str) -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    return {
        "vlmcompress": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **others,
        "python": platform.python_version(),
    }


@dataclass
class Peak:
    """Memory of a block of code."""

    bytes: int | None = None
    """The most that was held at once beyond what was held before; None where it is unknown."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block: what PyTorch allocates on CUDA, on Linux the resident set of the process.

    The kernel keeps the highest resident set since it was last told to forget it. Where it cannot
    be told, and on other systems, the peak stays None.
    """
    found = Peak()
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _forget_peak() if device.type == "cpu" else None
    yield found
    if before is not None:
        cuda = device.type == "cuda"
        most = torch.cuda.max_memory_allocated(device) if cuda else _most_resident()
        found.bytes = max(0, most - before)


def _forget_peak() -> int | None:
    """Bytes that are resident now, from which the peak is counted anew; None where it cannot be."""
    if platform.system() != "Linux":
        return None
    # glibc keeps freed memory, which would hide what the block allocates of it. psutil has this
    # where the C library does.
    trim = getattr(psutil, "heap_trim", None)
    if trim is not None:
        trim()
    try:
        (_PROCESS / "clear_refs").write_text("5")
        return int(psutil.Process().memory_info().rss)
    except OSError:
        return None


def _most_resident() -> int:
    """Bytes of the highest resident set since it was forgotten; psutil has none on Linux."""
    lines = (_PROCESS / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def cpu() -> str:
    """As the kernel names it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
