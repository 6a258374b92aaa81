"""Sink dimensions."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.sinks import sink_dimensions, sinkness


def brute(hidden, dims):
    rms = math.sqrt(sum(value * value for value in hidden) / len(hidden) + 1e-6)
    return max(abs(hidden[dim]) / rms for dim in dims)


@pytest.mark.parametrize("dims", [(0,), (3, 1), (5, 2, 4)])
def test_sinkness_against_loops(dims):
    hidden = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0)) * 5
    expected = [[brute(row.tolist(), dims) for row in batch] for batch in hidden]
    torch.testing.assert_close(sinkness(hidden, dims), torch.tensor(expected))


def test_half_precision_is_computed_in_float32():
    hidden = (torch.randn(5, 600) * 100).half()  # squares overflow in half precision
    assert torch.equal(sinkness(hidden, (3,)), sinkness(hidden.float(), (3,)))
    assert sinkness(torch.zeros(2, 4), (1,)).tolist() == [0, 0]


def states(*huge):
    """First tokens of 1000 dimensions, each with the given ones huge."""
    made = torch.ones(len(huge), 1000)
    for row, dims in zip(made, huge, strict=True):
        row[list(dims)] = 500.0
    return made


def test_the_dimensions_that_are_huge_in_half_of_the_states():
    made = states((7, 900), (7, 900), (7,), (7, 33))
    assert sink_dimensions(made).tolist() == [7, 900]
    assert sink_dimensions(made.view(2, 2, 1000)).tolist() == [7, 900]
    assert sink_dimensions(made, share=0.6).tolist() == [7]
    assert sink_dimensions(made, share=0.2).tolist() == [7, 33, 900]
    assert sink_dimensions(made, tau=40).tolist() == []
    assert sink_dimensions(torch.ones(3, 50)).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkness(torch.ones(2, 4), (4,)), r"among 0 to 3 .* got \(4,\)"),
        (lambda: sinkness(torch.ones(2, 4), (-1,)), r"among 0 to 3 .* got \(-1,\)"),
        (lambda: sinkness(torch.ones(2, 4), ()), r"got \(\)"),
        (lambda: sinkness(torch.full((2, 4), math.nan), (1,)), "finite"),
        (lambda: sink_dimensions(torch.ones(0, 4)), "at least one hidden state"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(VLMCompressError, match=message):
        call()
