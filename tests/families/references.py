"""What a shortened forward is compared with: the whole bare model, which knows its family itself.

`masked` closes the keys of dropped tokens in whatever mask each layer is given. It holds where a
token acts on others through attention only. `staged` takes dropped tokens out of the hidden states
before the layer that drops them, with masks, rotary embeddings and per-token arguments as the model
made them for the whole prompt, so it holds for layers that carry a state along, too. `shortened`
is for decoders that know no positions and count distances by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from model_case import Case, Inputs
from torch import Tensor

Hook = Callable[[int, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]


def kept_columns(case: Case, report: Any, inputs: Inputs, layer: int) -> Tensor:
    """[B, L] bool: what of the prompts enters a layer."""
    present = inputs["attention_mask"].bool().clone()
    columns = [(line == case.token).nonzero()[:, 0] for line in inputs["input_ids"]]
    for image in report.images:
        mine, columns[image.row] = columns[image.row].tensor_split([image.before])
        kept = image.kept
        for cut in sorted(image.cuts):
            kept = image.cuts[cut] if cut <= layer else kept
        present[image.row, mine] = False
        present[image.row, mine[kept]] = True
    return present


def masked(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of each prompt."""
    keep = [kept_columns(case, report, inputs, layer) for layer in range(case.depth)]

    def close(number: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, seen = kwargs.get("attention_mask"), keep[number][:, None, None]
        assert torch.is_tensor(mask), f"layer {number} is given no mask"
        assert mask.dim() == 4, f"layer {number} is given a mask of shape {tuple(mask.shape)}"
        lowest = torch.finfo(torch.float32).min
        closed = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, lowest)
        return args, {**kwargs, "attention_mask": closed}

    with _before_layers(case, close):
        return case.logits(inputs)[:, -1]


def staged(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of a single prompt."""
    keep = [kept_columns(case, report, inputs, layer)[0] for layer in range(case.depth)]
    length = len(keep[0])
    now = [torch.arange(length)]

    def drop(number: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden, left = args[0] if args else kwargs["hidden_states"], keep[number].nonzero()[:, 0]
        if len(left) != hidden.shape[1]:
            hidden = hidden[:, torch.searchsorted(now[0], left)]
            now[0] = left

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            if not torch.is_tensor(value):
                return value
            if value.dim() == 4 and value.shape[-2:] == (length, length):
                return value[:, :, left][..., left]
            rows = value.dim() >= 2 and value.shape[:2] == (1, length)
            return value[:, left] if rows else value

        changed = {name: cut(value) for name, value in kwargs.items() if name != "hidden_states"}
        if args:
            return (hidden, *map(cut, args[1:])), changed
        return args, {**changed, "hidden_states": hidden}

    with _before_layers(case, drop):
        return case.logits(inputs, use_cache=False)[:, -1]


def shortened(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """The same where only the projector stage drops, and distances are between kept tokens."""
    left = kept_columns(case, report, inputs, 0)[0].nonzero()[:, 0]
    size = inputs["input_ids"].shape

    def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        def cut(value: Any) -> Any:
            return value[:, left] if torch.is_tensor(value) and value.shape[:2] == size else value

        return args, {name: cut(value) for name, value in kwargs.items()}

    handle = case.parts.lm.register_forward_pre_hook(drop, with_kwargs=True)
    try:
        return case.logits(inputs, use_cache=False)[:, -1]
    finally:
        handle.remove()


@contextmanager
def _before_layers(case: Case, hook: Hook) -> Iterator[None]:
    """While every layer of the bare model gets what a hook gives for it."""

    def numbered(number: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: hook(number, args, kwargs)

    handles = [
        layer.register_forward_pre_hook(numbered(number), with_kwargs=True)
        for number, layer in enumerate(case.parts.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
