"""Everything that was put on the modules of one model instance, and how to take it off again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedModelError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_MARKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where PyTorch keeps how each hook wants to be called."""
CALL = "_call_impl"
"""What `nn.Module.__call__` calls: hooks run inside it, and an interrupt passes them by."""


@dataclass
class _Note:
    """Something that was put on, or is about to be."""

    owner: nn.Module
    what: str | Callable[..., Any]
    """The name of an attribute, or a hook."""
    number: int | None = None
    """PyTorch's, of a hook; a deep copy has the same numbers and other hooks."""
    replaces: bool = False
    """Whether the instance had that attribute itself, with the value `before`."""
    before: Any = None


@dataclass
class WrappedCall:
    """A wrapped call whose method `go` torch.compile takes, which a partial is not for it; unlike a
    function it follows a deep copy."""

    wrapper: Callable[..., Any]
    original: Callable[..., Any]

    def go(self, *args: Any, **kwargs: Any) -> Any:
        """The call."""
        return self.wrapper(self.original, *args, **kwargs)


class Attachments:
    """Hooks and instance attributes. A deep copy belongs to the copied modules.

    What is about to be put on is noted first: an exception such as Ctrl-C can come between any two
    steps, and nothing may stay behind that `remove` does not know of.
    """

    def __init__(self) -> None:
        self._notes: list[_Note] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], *, kwargs: bool = True) -> None:
        """Call `hook(module, args, kwargs)` before each forward, or `hook(module, args)`."""
        note = self._note(module, hook)
        note.number = module.register_forward_pre_hook(hook, with_kwargs=kwargs).id

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs, output)` after each forward, also one that fails."""
        note = self._note(module, hook)
        handle = module.register_forward_hook(hook, with_kwargs=True, always_call=True)
        note.number = handle.id

    def look(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, output)` after each forward that ends well."""
        note = self._note(module, hook)
        note.number = module.register_forward_hook(hook).id

    def change(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Let `hook(module, args, kwargs, output)` change what each forward gives.

        It runs before all other hooks, so that these see the change: transformers collects hidden
        states with hooks.
        """
        note = self._note(module, hook)
        note.number = module.register_forward_hook(hook, with_kwargs=True, prepend=True).id

    def set(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this instance only."""
        self._note(owner, name)
        object.__setattr__(owner, name, value)

    def replace(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute that the instance has, and give its own value back in the end."""
        self._notes.append(_Note(owner, name, replaces=True, before=vars(owner)[name]))
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
        if name == CALL:
            self.set(owner, name, WrappedCall(wrapper, original).go)
            return
        # transformers reads signatures to decide what to pass, so the wrapper must carry this one.
        self.set(owner, name, functools.wraps(original)(functools.partial(wrapper, original)))

    def remove(self) -> None:
        """Take everything off, the last first; harmless when called twice or half done."""
        while self._notes:
            note = self._notes[-1]
            if not isinstance(note.what, str):
                _take_off(note)
            elif note.replaces:
                object.__setattr__(note.owner, note.what, note.before)
            else:
                vars(note.owner).pop(note.what, None)
            self._notes.pop()

    def _note(self, owner: nn.Module, what: str | Callable[..., Any]) -> _Note:
        self._notes.append(_Note(owner, what))
        return self._notes[-1]


def _take_off(note: _Note) -> None:
    """Remove a hook, also one whose number never became known."""
    for name in _HOOKS:
        hooks: dict[int, Any] = getattr(note.owner, name)
        for number in [n for n, one in list(hooks.items()) if n == note.number or one is note.what]:
            for marks in _MARKS:
                getattr(note.owner, marks).pop(number, None)
            hooks.pop(number, None)
