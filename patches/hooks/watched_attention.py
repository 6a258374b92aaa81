"""What a module attends with, as it hands it to the attention function.

transformers looks that function up by a name in the module's configuration. A watched module is
given a copy of its configuration that names one of ours, which is known to `AttentionInterface`; it
shows what it was given and calls what the model's own configuration names, so masks and results
stay what they were.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.hooks.attachments import Attachments

NAME = "vlmcompress_watched"
_FLASH = f"{NAME}_flash_attention"
"""Modules hand whole batches of sequences to what is called flash, and one by one to others."""
_WATCH = "_vlmcompress_watch"
_EAGER = "eager_attention_forward"


@dataclass(frozen=True)
class Watched:
    """One call of an attention function."""

    query: Tensor
    """[B, H, Q, d] after norms and rotary embedding."""
    key: Tensor
    """[B, Hkv, K, d] of the same."""
    scaling: float
    """Factor of queries @ keys."""
    mask: Any
    """As the function takes it; None for no mask."""
    options: Mapping[str, Any]
    """All else that it was given by name."""


@dataclass(eq=False)
class _Watch:
    """Of one module."""

    look: Callable[[Watched], None]
    config: Any
    """The module's own, whose attention implementation users may change at any time."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        scaling = kwargs.get("scaling") or getattr(module, "scaling", None)
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        self.look(Watched(query, key, scaling or query.shape[-1] ** -0.5, mask, kwargs))
        name = self.config._attn_implementation
        attend = eager_of(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        return attend(module, query, key, *args, **kwargs)


def watch(attached: Attachments, module: Any, look: Callable[[Watched], None]) -> None:
    """Call `look` whenever a module attends, until `attached` is removed.

    Args:
        attached: notes what is put on.
        module: an attention module with a configuration of its own.
        look: called before the attention function.
    """
    for name in (NAME, _FLASH):
        AttentionInterface.register(name, _watched)
    own = copy.copy(module.config)
    own.__class__ = _kind_of(module.config.__class__)
    own._vlmcompress_watches = module.config
    attached.set(module, _WATCH, _Watch(look, module.config))
    attached.replace(module, "config", own)


def _watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_WATCH](module, *args, **kwargs)


@functools.cache
def _kind_of(kind: type[Any]) -> type[Any]:
    """The same kind of configuration that names our attention function."""

    def name(self: Any) -> str:
        real = str(self._vlmcompress_watches._attn_implementation)
        return _FLASH if "flash" in real else NAME

    return type(kind.__name__, (kind,), {"_attn_implementation": property(name)})


def eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file in which a module is written.

    Raises:
        UnsupportedModelError: the file has none.
    """
    code: Any = inspect.unwrap(type(module).forward).__code__
    known = vars(sys.modules[type(module).__module__])
    named = (name for name in code.co_names if name.endswith(_EAGER))
    found: Callable[..., Any] | None = known.get(next(named, _EAGER))
    if found is None:
        raise UnsupportedModelError(
            f"{type(module).__module__} has no {_EAGER}(), by which decoder-stage methods "
            "rank: use a projector-stage method"
        )
    return found
