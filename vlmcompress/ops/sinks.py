"""Attention sinks: tokens with a huge value in a few hidden dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.finite import finite

_EPSILON = 1e-6


def sinkness(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """The largest of some dimensions of hidden states, as a multiple of their root mean square.

    Args:
        hidden: [..., D] any floating dtype.
        dims: some of 0..D-1.

    Returns:
        [...] float32: max over dims of |h| / sqrt(mean(h**2) + 1e-6).

    Raises:
        VLMCompressError: there are no dims, one of them is outside, or a state is not finite.

    Source: VAR, arXiv 2503.03321, section 4.
    """
    width = hidden.shape[-1]
    if not dims or min(dims) < 0 or max(dims) >= width:
        raise VLMCompressError(
            f"sink dimensions must be among 0 to {width - 1} of this decoder, got {tuple(dims)}"
        )
    hidden = finite(hidden)
    return _scaled(hidden[..., list(dims)], hidden).amax(-1)


def sink_dimensions(states: Tensor, tau: float = 20.0, share: float = 0.5) -> Tensor:
    """The dimensions in which the first token of prompts is huge.

    Give the states of the first token that enter layers 2 to L/2 of a decoder, for a few prompts.
    All dimensions together would make every token a sink.

    Args:
        states: [..., D] any floating dtype.
        tau: multiple of the root mean square from which on a value is huge.
        share: of the states in which it must be; ours.

    Returns:
        [K] int64, ascending; often two.

    Raises:
        VLMCompressError: there are no states, or one of them is not finite.

    Source: VAR, arXiv 2503.03321, the recipe in outline.
    """
    states = states.reshape(-1, states.shape[-1])
    if not len(states):
        raise VLMCompressError("sink_dimensions needs at least one hidden state, got none")
    states = finite(states)
    huge = (_scaled(states, states) > tau).float().mean(0)
    return (huge >= share).nonzero()[:, 0]


def _scaled(some: Tensor, hidden: Tensor) -> Tensor:
    """`some` of the values of `hidden` as multiples of its root mean square."""
    with torch.autocast(hidden.device.type, enabled=False):
        return some.abs() * (hidden.square().mean(-1, keepdim=True) + _EPSILON).rsqrt()
