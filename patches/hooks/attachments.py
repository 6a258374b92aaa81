"""Everything that was put on the modules of one model instance, and how to take it off again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from vlmcompress.errors import UnsupportedModelError


class Attachments:
    """Hooks and instance attributes. A deep copy belongs to the copied modules."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._attributes: list[tuple[nn.Module, str]] = []
        self._replaced: list[tuple[nn.Module, str, Any]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before each forward."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs, output)` after each forward, also one that fails."""
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))

    def change(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Let `hook(module, args, kwargs, output)` change what each forward gives.

        It runs before all other hooks, so that these see the change: transformers collects hidden
        states with hooks.
        """
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def take_over(self, handles: list[RemovableHandle]) -> None:
        """Remove these hooks, too, when the time comes."""
        self._handles += handles

    def set(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this instance only."""
        object.__setattr__(owner, name, value)
        self._attributes.append((owner, name))

    def replace(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute that the instance has, and give its own value back in the end."""
        self._replaced.append((owner, name, vars(owner)[name]))
        object.__setattr__(owner, name, value)

    def wrap(self, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        """Let calls of a method of this instance go to `wrapper(original, ...)`.

        Raises:
            UnsupportedModelError: something else has replaced the method on this instance.
        """
        if name in vars(owner):
            raise UnsupportedModelError(
                f"{type(owner).__name__}.{name} was replaced on this instance by something else: "
                "undo that first"
            )
        original = getattr(owner, name)
        # transformers reads signatures to decide what to pass, so the wrapper must carry this one.
        self.set(owner, name, functools.wraps(original)(functools.partial(wrapper, original)))

    def remove(self) -> None:
        """Take everything off; harmless when called twice."""
        for handle in self._handles:
            handle.remove()
        for owner, name in self._attributes:
            vars(owner).pop(name, None)
        for owner, name, value in self._replaced:
            object.__setattr__(owner, name, value)
        self._handles, self._attributes, self._replaced = [], [], []


def check_compiled(model: nn.Module) -> None:
    """Compiled code ignores hooks that are added later, so compiling has to come second.

    Raises:
        UnsupportedModelError: the model, or a part of it, is compiled.
    """
    for name, module in model.named_modules():
        compiled = "_orig_mod" in module._modules or module._compiled_call_impl is not None
        # What torch.compile makes of a function knows what it was made of.
        if compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise UnsupportedModelError(
                f"{name or type(model).__name__} is compiled, and compiled code ignores hooks that "
                "are added later: compress the plain model first, then compile it"
            )
