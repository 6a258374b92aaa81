"""The one way into a compressed model: calls are counted there, and cleaned up after."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo.decorators import skip

from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.hooks.attachments import CALL, Attachments
from vlmcompress.patches.hooks.running import called_inside, codes_of, threads_inside


class Entrance:
    """Wraps what users call: `generate`, forwards of the model and its base, feature calls.

    The outermost of the calls of a thread is the one that counts. It ends in one place, whatever
    ends it.

    A call that was running when the hooks were put on goes on without them: the bare model began
    it. So does each forward of a `generate` that the bare model began.
    """

    def __init__(self, installed: Installed) -> None:
        self._now, self._shared = installed.now, installed.shared
        model, base, family = installed.model, installed.base, installed.family
        # Some base models are what users hold.
        self._owners = (model,) if base is model else (model, base)
        calls = (family.feature_call(base, modality) for modality in family.feature_calls)
        self._codes = codes_of(model, "generate").union(*(codes_of(*call) for call in calls))

    def hook(self, attached: Attachments) -> None:
        """Wrap the forwards; from now on calls come through here."""
        for owner in self._owners:
            self.wrap(attached, owner, CALL, None)

    def note_earlier(self) -> None:
        """Find the calls that run already; everything that is called is wrapped by now."""
        self._shared.earlier = threads_inside(self._owners, self._codes)

    def wrap(
        self,
        attached: Attachments,
        owner: nn.Module,
        name: str,
        inner: Callable[..., Any] | None,
    ) -> None:
        """Let a method that users call go through here, then to `inner(original, ...)`."""
        attached.wrap(owner, name, functools.partial(self._enter, owner, name, inner))

    # What torch.compile makes of a whole model knows of no call that begins: it leaves its code
    # here, and takes up what is called from here again.
    @skip
    def _enter(
        self,
        owner: nn.Module,
        name: str,
        inner: Callable[..., Any] | None,
        original: Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        now, shared = self._now, self._shared
        call = original if inner is None else functools.partial(inner, original)
        if now.inside:
            return call(*args, **kwargs)
        if now.passing:
            return original(*args, **kwargs)
        if shared.for_others:
            return self._pass(original, *args, **kwargs)
        try:
            if not shared.enter():  # the hooks are gone, or never came
                return getattr(owner, name)(*args, **kwargs)
            now.clear()
            if shared.earlier and self._is_earlier():
                now.passing = True
                return original(*args, **kwargs)
            now.inside = True
            return call(*args, **kwargs)
        except BaseException:
            now.fail()
            raise
        finally:
            try:
                self._leave()
            except BaseException:  # an interrupt that came right here
                self._leave()
                raise

    def _pass(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of the bare model, which need not end before the hooks go."""
        self._now.passing = True
        try:
            return original(*args, **kwargs)
        finally:
            self._now.clear()

    def _leave(self) -> None:
        self._now.clear()
        self._shared.leave()

    def _is_earlier(self) -> bool:
        """Whether the running call of this thread began before the hooks were put on."""
        found = called_inside(self._owners, self._codes, depth=2)
        if not found:
            self._shared.forget_earlier()
        return found
