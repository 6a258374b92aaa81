"""A projector taken apart: moves of its input, and its slope over all directions."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, silu

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.projector import Body, Norm
from vlmcompress.ops.sensitivity import sensitivity
from vlmcompress.ops.similarity import unit_rows

TOKENS, PATCHES, WIDTH, INNER, OUT = 7, 3, 4, 10, 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(over: int, centred: bool) -> Norm:
    weight = 1 + 0.3 * random(over, seed=4)
    return Norm(weight, random(over, seed=5) if centred else None, 1e-3, centred)


NORMS = {
    "none": None,
    "layer norm of each patch": norm(WIDTH, True),
    "layer norm of a token": norm(PATCHES * WIDTH, True),
    "rms norm of each patch": norm(WIDTH, False),
    "rms norm of a token": norm(PATCHES * WIDTH, False),
}
INPUTS = 2 * random(TOKENS, PATCHES, WIDTH, seed=3)
MOVES = unit_rows(random(6, WIDTH, seed=2))
LAST = random(OUT, INNER, seed=1)


def body(name: str, act=gelu, bias: bool = True) -> Body:
    first = random(INNER, PATCHES * WIDTH) / 3
    return Body(first, random(INNER, seed=6) if bias else None, act, NORMS[name])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_what_enters_the_activation_is_that_of_moved_inputs(name, bias):
    bare = body(name, act=lambda x: x, bias=bias)
    moves = bare.moves(INPUTS, MOVES)
    for step in (0.5, -0.01, 0.0):
        expected = torch.stack([bare(INPUTS + step * move) for move in MOVES[1:4]])
        found = moves(slice(1, 4), step)
        assert found.shape == (3, TOKENS, INNER)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (moves(slice(0, 6), 0.5) - moves(slice(0, 6), 0.0)).abs().min() > 0


@pytest.mark.parametrize("name", NORMS)
def test_differences_are_those_of_running_the_body_for_each(name, monkeypatch):
    whole = body(name)
    expected = sensitivity(lambda x: whole(x), LAST, INPUTS, MOVES, step=0.1)
    found = sensitivity(whole, LAST, INPUTS, MOVES, step=0.1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.std() > 0.01
    monkeypatch.setattr("vlmcompress.ops.sensitivity._NUMBERS", 1)
    torch.testing.assert_close(sensitivity(whole, LAST, INPUTS, MOVES, step=0.1), found)


def squared_jacobian(whole: Body, row: torch.Tensor) -> torch.Tensor:
    """Sum over a basis of the directions of the squared slope, by autograd in float64."""
    whole = Body(whole.first.double(), whole.bias.double(), whole.act, _double(whole.norm))

    def moved(move: torch.Tensor) -> torch.Tensor:
        return (whole((row.double() + move)[None]) @ LAST.double().T)[0]

    jacobian = torch.autograd.functional.jacobian(moved, torch.zeros(WIDTH).double())
    return jacobian.square().sum()


def _double(one: Norm | None) -> Norm | None:
    if one is None:
        return None
    bias = None if one.bias is None else one.bias.double()
    return Norm(one.weight.double(), bias, one.eps, one.centred)


@pytest.mark.parametrize("act", [gelu, silu, torch.nn.GELU("tanh")])
@pytest.mark.parametrize("name", [name for name in NORMS if "patch" not in name])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_expected_is_the_root_of_the_mean_square_over_all_directions(name, act, mode):
    whole = body(name, act)
    squares = torch.stack([squared_jacobian(whole, row) for row in INPUTS])
    with mode():
        found = sensitivity(whole, LAST, INPUTS, MOVES, step=9.0, probe="expected")
    torch.testing.assert_close(found, (squares / WIDTH).sqrt().float(), atol=1e-5, rtol=1e-4)
    assert found.std() > 0.01


def test_one_patch_that_is_normalised_is_a_whole_token():
    whole = Body(random(INNER, WIDTH), random(INNER, seed=6), gelu, norm(WIDTH, True))
    rows = INPUTS[:, :1]
    squares = torch.stack([squared_jacobian(whole, row) for row in rows])
    found = whole.spread(rows, LAST)
    torch.testing.assert_close(found, (squares / WIDTH).sqrt().float(), atol=1e-5, rtol=1e-4)


def test_many_directions_come_near_to_it():
    whole, many = body("none"), unit_rows(random(4000, WIDTH))
    expected = sensitivity(whole, LAST, INPUTS, many, step=0.01)
    found = whole.spread(INPUTS, LAST)
    assert (found >= expected).all()  # a root mean square is never below the mean
    assert (found / expected - 1).max() < 0.1
    few = sensitivity(whole, LAST, INPUTS, many[:3], step=0.01)
    assert (few / expected - 1).abs().max() > 0.1


def test_what_depends_on_weights_alone_is_worked_out_once():
    whole = body("layer norm of a token")
    first = whole.spread(INPUTS, LAST)
    assert set(whole.kept) == {"gram", "whole"}
    again = whole.spread(INPUTS[:3], LAST)
    torch.testing.assert_close(again, first[:3])
    whole.kept["whole"] = whole.kept["whole"] * 4
    assert not torch.allclose(whole.spread(INPUTS[:3], LAST), again)


def test_half_precision_computes_in_its_own_dtype_and_is_probed_in_float32():
    whole, half = body("rms norm of a token"), INPUTS.bfloat16()
    assert whole(half).dtype == torch.bfloat16
    for probe in ("difference", "expected"):
        with torch.autocast("cpu", torch.bfloat16):
            found = sensitivity(whole, LAST, half, MOVES, step=0.01, probe=probe)
        expected = sensitivity(whole, LAST, half.float(), MOVES, step=0.01, probe=probe)
        assert torch.equal(found, expected)


def test_expected_is_refused_where_there_is_no_closed_form():
    with pytest.raises(VLMCompressError, match="each of its 3 patches: use probe='difference'"):
        body("layer norm of each patch").spread(INPUTS, LAST)
    with pytest.raises(VLMCompressError, match="two linear layers, this one is another"):
        sensitivity(lambda x: x.flatten(1), LAST, INPUTS, MOVES, step=1.0, probe="expected")


def test_a_norm_over_parts_of_a_patch_runs_the_body_for_each():
    whole = Body(random(INNER, PATCHES * WIDTH), None, gelu, norm(WIDTH // 2, True))
    assert whole.moves(INPUTS, MOVES) is None
    found = sensitivity(whole, LAST, INPUTS, MOVES, step=0.1)
    expected = sensitivity(lambda x: whole(x), LAST, INPUTS, MOVES, step=0.1)
    assert torch.equal(found, expected)
