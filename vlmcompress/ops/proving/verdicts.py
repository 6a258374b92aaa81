"""What was found about a kernel on a card, kept in memory and in the cache folder.

One file a verdict, written whole, so that several processes may write at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.files import cache_folder, write_json
from vlmcompress.files.untrusted import read_json
from vlmcompress.version import __version__

Outcome = Literal["faster", "slower", "wrong", "broken", "untimed"]
"""Of the kernel: right and faster than torch, right and not faster, not what torch gives, not able
to run, or not judged for want of time or memory."""


@dataclass(frozen=True)
class Case:
    """An op on shapes like each other: each size stands for itself rounded up to a power of two."""

    op: str
    sizes: tuple[tuple[str, int], ...]
    """Ascending by name."""
    dtype: str

    @classmethod
    def of(cls, op: str, sizes: Mapping[str, int], dtype: torch.dtype) -> Case:
        """The case of these sizes."""
        rounded = ((k, 1 << (n - 1).bit_length() if n > 1 else int(n)) for k, n in sizes.items())
        return cls(op, tuple(sorted(rounded)), str(dtype).removeprefix("torch."))

    def __str__(self) -> str:
        return " ".join([*(f"{name}={size}" for name, size in self.sizes), self.dtype])


@dataclass(frozen=True)
class Verdict:
    """What became of a trial."""

    outcome: Outcome
    detail: str = ""
    """What is wrong, or why it was not judged."""
    torch_ms: float | None = None
    kernel_ms: float | None = None
    """Medians."""


_known: dict[tuple[str, Case], Verdict] = {}
"""By card and case."""


def card_of(device: torch.device) -> str:
    """The card, and the versions that a verdict holds for."""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)} sm_{major}{minor}, torch {torch.__version__}, "
        f"triton {_triton()}, vlmcompress {__version__}"
    )


def known(card: str, case: Case) -> Verdict | None:
    """The verdict of this or an earlier process; that an op is wrong counts for all its cases."""
    for one in (_whole(case), case):
        if (card, one) not in _known:
            found = _read(_path(card, one))
            if found is None:
                continue
            _known[card, one] = found
        return _known[card, one]
    return None


def keep(card: str, case: Case, verdict: Verdict) -> None:
    """Remember it, and on disk unless another process may fare better.

    A kernel that is wrong or broken once is off for all cases of its op.
    """
    case = _whole(case) if verdict.outcome in ("wrong", "broken") else case
    _known[card, case] = verdict
    if verdict.outcome in ("broken", "untimed"):
        return
    path = _path(card, case)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"card": card, "op": case.op, "case": str(case), **asdict(verdict)})
    except (OSError, RuntimeError, VLMCompressError):
        return  # this process knows it; the next one finds out again


def kept(card: str) -> Iterator[tuple[str, str, Verdict]]:
    """Op, case and verdict of all that the cache folder holds for a card."""
    for path in sorted(_folder(card).glob("*.json")):
        verdict = _read(path)
        if verdict is not None:
            content = read_json(path)
            yield str(content.get("op")), str(content.get("case")), verdict


def _whole(case: Case) -> Case:
    return Case(case.op, (), "any")


def _path(card: str, case: Case) -> Path:
    name = "_".join([case.op, *(f"{name}{size}" for name, size in case.sizes), case.dtype])
    return _folder(card) / f"{name}.json"


def _folder(card: str) -> Path:
    return cache_folder("kernels") / re.sub(r"[^\w.+-]+", "-", card)


def _read(path: Path) -> Verdict | None:
    """None where there is nothing or a damaged file."""
    try:
        found = read_json(path)
        verdict = Verdict(*(found[name] for name in Verdict.__dataclass_fields__))
    except (OSError, VLMCompressError, KeyError, TypeError):
        return None
    times = (verdict.torch_ms, verdict.kernel_ms)
    fine = all(one is None or isinstance(one, int | float) for one in times)
    fine = fine and isinstance(verdict.detail, str)
    return verdict if fine and verdict.outcome in get_args(Outcome) else None


@cache
def _triton() -> str:
    return version("triton")
