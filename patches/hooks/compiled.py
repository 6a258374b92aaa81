"""Modules that torch.compile has been at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from torch import nn
from torch._dynamo.decorators import disable

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.hooks.attachments import Attachments

Hook = TypeVar("Hook", bound=Callable[..., Any])
_IN_PLACE = "_compiled_call_impl"
"""Where PyTorch keeps what `module.compile()` made."""
_PLAIN = "_torchdynamo_orig_callable"
"""Where what torch.compile makes of a function keeps what it was made of."""


def never_compiled(hook: Hook) -> Hook:
    """A hook that compiled code calls as it is written.

    What a thread is in the middle of is kept by `threading.local`, which the compiler takes for
    constant: a compiled hook would find no call, and the model would answer as if it were bare.
    """
    return cast(Hook, disable(hook))  # type: ignore[no-untyped-call]


def check_compiled(model: nn.Module) -> None:
    """Compiled code ignores hooks that are added later, so compiling has to come second.

    Raises:
        UnsupportedModelError: the model, or a part of it, is compiled.
    """
    for name, module in model.named_modules():
        in_place = getattr(module, _IN_PLACE) is not None
        if "_orig_mod" in module._modules or in_place or _plain_forward(module) is not None:
            raise UnsupportedModelError(
                f"{name or type(model).__name__} is compiled, and compiled code ignores hooks that "
                "are added later: compress the plain model first, then compile it"
            )


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """While modules that were compiled in place run as they were written.

    Calls of other threads do so meanwhile, too, and give the same. A module that stands in the
    place of a compiled one (`torch.compile(module)`) is left alone.
    """
    attached = Attachments()
    try:
        for module in model.modules():
            if getattr(module, _IN_PLACE) is not None:
                attached.replace(module, _IN_PLACE, None)
            forward = _plain_forward(module)
            if forward is not None:
                attached.replace(module, "forward", forward)
        yield
    finally:
        attached.remove()


def _plain_forward(module: nn.Module) -> Any:
    """What the compiled forward of a module was made of; None where it is not compiled."""
    return getattr(vars(module).get("forward"), _PLAIN, None)
