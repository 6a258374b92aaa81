"""What a module attends with, as it hands it to the attention function.

transformers looks that function up by a name in the module's configuration. A watched module is
given a copy of its configuration that names one of ours, which is known to `AttentionInterface`; it
shows what it was given and calls what the model's own configuration names, so masks and results
stay what they were, but for what the onlooker wants to be added to the logits. Code that asks
whether the name is "eager" or "sdpa", to make a mask for these, is told what it would be told
without us.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.attended import Attended, eager_of

NAME = "vlmcompress_watched"
_FLASH = f"{NAME}_flash_attention"
"""Modules hand all sequences together to what is called flash, and one by one to others."""
_WATCH = "_vlmcompress_watch"
_NAMES = ("self_attn", "attn", "attention", "mixer")
"""What layers call their attention."""


Look = Callable[[Attended], Tensor | None]
"""Is shown what a module attends with, and says what is to be added to the logits, broadcast to
[B, H, Q, K] in the dtype of the queries; None for nothing."""


@dataclass(eq=False)
class _Watch:
    """Of one module."""

    look: Look
    config: Any
    """The module's own, whose attention implementation users may change at any time."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        given = query, key, value, attention_mask
        bias = self.look(_attended(module, *given, *args, **kwargs))
        if bias is not None:
            given = query, key, value, _added(attention_mask, bias)
        name = self.config._attn_implementation
        attend = eager_of(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        return attend(module, *given, *args, **kwargs)


def attention_of(layer: nn.Module) -> Any:
    """What a layer attends with, by the names that are in use; None where it has none."""
    return next((found for name in _NAMES if (found := getattr(layer, name, None))), None)


def watch(attached: Attachments, module: Any, look: Look) -> None:
    """Call `look` whenever a module attends, before it does, until `attached` is removed.

    Args:
        attached: notes what is put on.
        module: an attention module with a configuration of its own.
        look: what it raises ends the call of the module.
    """
    for name in (NAME, _FLASH):
        AttentionInterface.register(name, _watched)
    own = copy.copy(module.config)
    own.__class__ = _kind_of(module.config.__class__)
    own._vlmcompress_watches = module.config
    attached.set(module, _WATCH, _Watch(look, module.config))
    attached.replace(module, "config", own)


def _attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Attended:
    if options.get("scaling") is None:
        options["scaling"] = getattr(module, "scaling", query.shape[-1] ** -0.5)
    return Attended(module, query, key, attention_mask, options)


def _added(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A mask of numbers under which `bias` is added, too."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.where(mask, torch.finfo(bias.dtype).min)
    return mask + bias


def _watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_WATCH](module, *args, **kwargs)


class _Alias(str):
    """Our name by its letters, so that it is looked up; equal to the name that it stands for."""

    stands_for: str

    @classmethod
    def of(cls, real: str) -> _Alias:
        """Of the name of a real attention function."""
        found = cls(_FLASH if "flash" in real else NAME)
        found.stands_for = real
        return found

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) is True or self.stands_for == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@functools.cache
def _kind_of(kind: type[Any]) -> type[Any]:
    """The same kind of configuration that names our attention function."""

    def name(self: Any) -> str:
        return _Alias.of(str(self._vlmcompress_watches._attn_implementation))

    return type(kind.__name__, (kind,), {"_attn_implementation": property(name)})
