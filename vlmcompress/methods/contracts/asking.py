"""Asking a method of the projector stage the way that its class was written for."""

from __future__ import annotations

from torch import Tensor

from vlmcompress.methods.contracts.method import (
    AskingReducer,
    AskingSelector,
    ProjectorMethod,
    Reducer,
    Selector,
)
from vlmcompress.ops.questions import Asking
from vlmcompress.tokens import Reduction, VisualTokens


def selecting(method: Selector, tokens: VisualTokens, count: int) -> Asking[Tensor]:
    """What `select` gives, by questions where the method has any."""
    if isinstance(method, AskingSelector) and _is_newer(method, "selecting", "select"):
        return (yield from method.selecting(tokens, count))
    return method.select(tokens, count)


def reducing(method: Reducer, tokens: VisualTokens, count: int) -> Asking[Reduction]:
    """What `reduce` gives, by questions where the method has any."""
    if isinstance(method, AskingReducer) and _is_newer(method, "reducing", "reduce"):
        return (yield from method.reducing(tokens, count))
    return method.reduce(tokens, count)


def _is_newer(method: ProjectorMethod, asking: str, plain: str) -> bool:
    """Whether no subclass has replaced `plain` alone, of which `asking` would know nothing."""
    for kind in type(method).__mro__:
        if asking in vars(kind) or plain in vars(kind):
            return asking in vars(kind)
    return False
