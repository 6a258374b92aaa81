"""What a shortened forward is compared with: the whole bare model, which knows its family itself.

`masked` closes the keys of dropped tokens in whatever mask each layer is given. It holds where a
token acts on others through attention only. `staged` takes dropped tokens out of the hidden states
before the layer that drops them, with masks, rotary embeddings and per-token arguments as the model
made them for the whole prompt, so it holds for layers that carry a state along, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.attachments import Attachments

Arguments = tuple[Any, dict[str, Any]]
Hook = Callable[[int, Any, dict[str, Any]], Arguments]
Keep = Sequence[Tensor]
"""Per decoder layer [B, L] bool: what of the prompts enters it."""


class NoMaskError(ValueError):
    """A layer whose keys cannot be closed, since it is given no mask of queries and keys."""


def masked(parts: ModelParts, run: Callable[[], Tensor], keep: Keep) -> Tensor:
    """What `run` gives while no layer lets anybody attend to tokens that do not enter it.

    Raises:
        NoMaskError: a layer is given no mask of four dimensions.
    """

    def close(number: int, args: Any, kwargs: dict[str, Any]) -> Arguments:
        mask, seen = kwargs.get("attention_mask"), keep[number][:, None, None]
        if not torch.is_tensor(mask):
            raise NoMaskError(f"layer {number} is given no mask")
        if mask.dim() != 4:
            raise NoMaskError(f"layer {number} is given a mask of shape {tuple(mask.shape)}")
        seen = seen.to(mask.device)
        if mask.dtype == torch.bool:
            return args, {**kwargs, "attention_mask": mask & seen}
        lowest = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.masked_fill(~seen, lowest)}

    with before_layers(parts.layers, close):
        return run()


def staged(parts: ModelParts, run: Callable[[], Tensor], keep: Keep) -> Tensor:
    """What `run`, a forward of one prompt without a cache, gives on the tokens that are left.

    Features that the decoder adds between its layers (DeepStack) follow their tokens.
    """
    length = keep[0].shape[1]
    now = torch.arange(length, device=keep[0].device)

    def drop(number: int, args: Any, kwargs: dict[str, Any]) -> Arguments:
        nonlocal now
        hidden, left = args[0] if args else kwargs["hidden_states"], keep[number][0].nonzero()[:, 0]
        if len(left) != hidden.shape[1]:
            hidden = hidden[:, torch.searchsorted(now, left).to(hidden.device)]
            now = left
        cut = partial(_rows, left, length)
        changed = {name: cut(value) for name, value in kwargs.items() if name != "hidden_states"}
        if args:
            return (hidden, *map(cut, args[1:])), changed
        return args, {**changed, "hidden_states": hidden}

    def add(original: Callable[..., Any], hidden: Tensor, mask: Tensor, features: Tensor) -> Any:
        left = now.to(mask.device)
        numbers, visual = mask[0].cumsum(0) - 1, mask[0, left]
        return original(hidden, mask[:, left], features[numbers[left[visual]]])

    attached = Attachments()
    try:
        if parts.family.deepstack is not None:
            attached.wrap(parts.lm, parts.family.deepstack, add)
        with before_layers(parts.layers, drop):
            return run()
    finally:
        attached.remove()


def _rows(left: Tensor, length: int, value: Any) -> Any:
    """What is left of an argument of a layer that has something for each of `length` tokens."""
    if isinstance(value, tuple):
        return tuple(_rows(left, length, part) for part in value)
    if not torch.is_tensor(value):
        return value
    at = left.to(value.device)
    if value.dim() == 4 and value.shape[-2:] == (length, length):
        return value[:, :, at][..., at]
    return value[:, at] if value.dim() >= 2 and value.shape[:2] == (1, length) else value


@contextmanager
def before_layers(layers: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """While every layer gets what `hook(number, args, kwargs)` gives for it."""

    def numbered(number: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: hook(number, args, kwargs)

    handles = [
        layer.register_forward_pre_hook(numbered(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
