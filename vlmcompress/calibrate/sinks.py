"""Finds the sink dimensions of a decoder, for `VAR.dims`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.sinks import sink_dimensions


def calibrate(
    model: nn.Module, inputs: Iterable[Mapping[str, Any]], *, tau: float = 20.0
) -> tuple[int, ...]:
    """Look at the first token of a few prompts in layers 2 to L/2; text alone will do.

    Args:
        model: any model that gives its hidden states; not compressed.
        inputs: what the processor made of prompts; each is run through the model once.
        tau: as `VAR.tau`.

    Returns:
        The dimensions, ascending; none where the decoder has no sinks of this kind.

    Raises:
        VLMCompressError: there are no prompts, or no layer between 2 and L/2.

    Source: VAR, arXiv 2503.03321, the recipe in outline; `sink_dimensions` names what is ours.
    """
    found: list[Tensor] = []
    for prompt in inputs:
        with torch.no_grad():
            states = model(**prompt, output_hidden_states=True).hidden_states
        # The last one is what leaves the decoder, number i is what enters layer i.
        entering = states[2 : (len(states) - 1) // 2 + 1]
        mask = prompt.get("attention_mask")
        found += [_first(state, mask) for state in entering]
    if not found:
        raise VLMCompressError(
            "calibration of var needs at least one prompt and a decoder of at least 4 layers"
        )
    return tuple(sink_dimensions(torch.cat(found), tau).tolist())


def _first(state: Tensor, mask: Tensor | None) -> Tensor:
    """[B, D] float32: the first token of each row that is no padding."""
    rows = torch.arange(len(state), device=state.device)
    columns = torch.zeros_like(rows) if mask is None else mask.to(rows.device).long().argmax(1)
    return state[rows, columns].float()
