"""The features that a bare model gives its decoder, as rows that can be looked at and changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from model_case import Case
from torch import Tensor, nn

from vlmcompress.patches.hooks.attachments import Attachments

IN_FORWARD = {
    "llama4": "projects what its feature call returns",
    "molmo2": "adds features to the embedding of the placeholder",
}
"""Types whose forward makes something of the features before the decoder gets them."""
Change = Callable[[Tensor], None]
"""Writes into rows [placeholders, D] of all pictures of a call, in order."""


@contextmanager
def changed(
    case: Case, places: tuple[Tensor, Tensor], tokens: Change, others: Change
) -> Iterator[None]:
    """While the feature call of a model returns other features.

    Args:
        case: the model.
        places: rows and columns of the placeholders of all pictures, for the types `IN_FORWARD`:
            their features are changed where the decoder is given them.
        tokens: of the features that become tokens.
        others: then, of those that the decoder adds in later layers (DeepStack).
    """
    attached = Attachments()

    def encode(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        _change(output, tokens, others)
        return output

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs["inputs_embeds"].clone()
        rows = embeds[places]
        tokens(rows)
        embeds[places] = rows
        return args, {**kwargs, "inputs_embeds": embeds}

    try:
        if case.model_type in IN_FORWARD:
            attached.before(case.parts.lm, enter)
        else:
            attached.wrap(case.parts.base, case.features_of, encode)
        yield
    finally:
        attached.remove()


def _change(output: Any, tokens: Change, others: Change) -> None:
    """What a feature call returned: tokens under one of two names, others in lists by layer."""
    deep = getattr(output, "deepstack_features", None) or []
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = _written(output.pooler_output, tokens)
        if deep:
            output.deepstack_features = [_written(layer, others) for layer in deep]
    elif not deep:
        output.last_hidden_state = _written(output.last_hidden_state, tokens)
    else:  # (layer, features): all are added, and the first are the tokens
        found = sorted(deep, key=lambda entry: entry[0])
        output.deepstack_features = [
            (layer, _written(value, others if number else tokens))
            for number, (layer, value) in enumerate(found)
        ]


def _written(value: Any, change: Change) -> Any:
    """The same, a tensor [..., D] or several of them, with all its rows changed."""
    pieces = [value] if isinstance(value, Tensor) else list(value)
    rows = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])
    change(rows)
    parts = rows.split([piece.shape[:-1].numel() for piece in pieces])
    shaped = [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
    return shaped[0] if isinstance(value, Tensor) else type(value)(shaped)
