"""Calls that threads are in the middle of, read off their stacks.

Hooks know nothing of a call that began before they were put on, but such a call must be let through
as it is: half of it has been computed without them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection
from types import CodeType, FrameType

from torch import nn

from vlmcompress.patches.hooks.attachments import WrappedCall

_CALLS = frozenset({nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__})


def codes_of(owner: nn.Module, *methods: str) -> frozenset[CodeType]:
    """The code of some methods, and of the calls of modules."""
    found = (inspect.unwrap(getattr(type(owner), name, None) or _none) for name in methods)
    return _CALLS | {one.__code__ for one in found}


def threads_inside(owners: Collection[nn.Module], codes: Collection[CodeType]) -> set[int]:
    """Threads that run some methods (`codes`) of some modules."""
    frames = sys._current_frames().items()
    return {thread for thread, frame in frames if _inside(frame, owners, codes)}


def called_inside(owners: Collection[nn.Module], codes: Collection[CodeType], depth: int) -> bool:
    """Whether this thread does, above the call of a wrapper that is `depth` frames up."""
    frame: FrameType | None = sys._getframe(depth + 1)
    if frame is not None and frame.f_code is WrappedCall.go.__code__:
        frame = frame.f_back
    if frame is not None and frame.f_code in _CALLS:  # the wrapped call itself
        frame = frame.f_back
    return _inside(frame, owners, codes)


def _inside(
    frame: FrameType | None, owners: Collection[nn.Module], codes: Collection[CodeType]
) -> bool:
    while frame is not None:
        if frame.f_code in codes:
            own = frame.f_locals.get("self")
            if any(own is one for one in owners):
                return True
        frame = frame.f_back
    return False


def _none() -> None:
    """Stands in for a method that a class does not have."""
