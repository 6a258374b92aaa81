"""A projector of two linear layers, taken apart: all but the last layer, and how it reacts.

The first layer is linear, so a move of its input is worked out once and not for every token: only
the activation is taken of each token and move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, rms_norm

from vlmcompress.errors import VLMCompressError


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation in front of the first layer, over each patch of a token or over all."""

    weight: Tensor
    """[W]: it goes over W numbers at a time."""
    bias: Tensor | None
    eps: float
    centred: bool
    """Whether the mean is subtracted (layer norm) or not (RMS norm)."""


@dataclass(frozen=True, eq=False)
class Body:
    """x -> act(first(norm(x))); called with [M, P, D] it gives [M, K] in the dtype of x."""

    first: Tensor
    """[K, P * D] weight."""
    bias: Tensor | None
    act: Callable[[Tensor], Tensor]
    norm: Norm | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What depends on the weights alone, filled by `spread`; for as long as they stay."""

    def __call__(self, inputs: Tensor) -> Tensor:
        rows, norm = inputs.flatten(1), self.norm
        if norm is not None:
            grouped, shape = _groups(rows, len(norm.weight)), norm.weight.shape
            weight, bias = norm.weight.to(rows), _to(norm.bias, rows)
            if norm.centred:
                grouped = layer_norm(grouped, shape, weight, bias, norm.eps)
            else:
                grouped = rms_norm(grouped, shape, weight, norm.eps)
            rows = grouped.flatten(1)
        return self.act(linear(rows, self.first.to(rows), _to(self.bias, rows)))

    def moves(self, inputs: Tensor, directions: Tensor) -> Callable[[slice, float], Tensor] | None:
        """What enters the activation while all P patches of every token move alike.

        Args:
            inputs: [M, P, D] float32.
            directions: [m, D] float32.

        Returns:
            (some of the directions, step) -> [m', M, K] float32; None where the norm goes over
            other numbers than whole patches.
        """
        patches, width = inputs.shape[1:]
        rows, moved = inputs.flatten(1), directions.repeat(1, patches)
        weight = self.first.to(rows)
        if self.norm is None:
            there, along = linear(rows, weight, _to(self.bias, rows)), moved @ weight.T
            return lambda some, step: there + step * along[some, None]
        over = len(self.norm.weight)
        if over % width:
            return None
        groups = _Groups.of(self.norm, weight, _groups(rows, over), _groups(moved, over))
        constant = _to(self.bias, rows)
        if self.norm.bias is not None:
            shift = weight @ self.norm.bias.to(rows).repeat(patches * width // over)
            constant = shift if constant is None else constant + shift
        return lambda some, step: groups.at(some, step, constant)

    def spread(self, inputs: Tensor, last: Tensor) -> Tensor:
        """[M] float32: root of the mean squared slope of x -> self(x) @ last.T over all directions.

        In closed form: the squared Frobenius norm of the Jacobian J over D, with
        J = last diag(act') (S - V W^T): S is the first layer behind the norm's weight, summed over
        the patches that move alike, and V W^T (rank 2 at most) what the norm takes out.

        Args:
            inputs: [M, P, D] float32.
            last: [C, K] float32.

        Raises:
            VLMCompressError: a norm goes over each of several patches: there the closed form would
                need P^2 matrices.
        """
        _, patches, width = inputs.shape
        rows, norm = inputs.flatten(1), self.norm
        scale, out, weight = torch.ones_like(rows[:, 0]), [], self.first.to(rows)
        if norm is not None:
            if len(norm.weight) != patches * width:
                raise VLMCompressError(
                    f"probe='expected' needs a projector that normalises a token as a whole, this "
                    f"one normalises each of its {patches} patches: use probe='difference'"
                )
            weight = weight * norm.weight.to(rows)
            away = rows - rows.mean(1, keepdim=True) if norm.centred else rows
            scale = (away.square().mean(1) + norm.eps).rsqrt()
            unit = away * scale[:, None]
            out = [(unit @ weight.T, _summed(unit, patches))]
            if norm.centred:
                even = torch.ones_like(unit[:1])
                out.append((even @ weight.T, _summed(even, patches)))
        slope, over = self._slope(inputs), patches * width
        first = _summed(weight, patches)
        gram = self._kept("gram", lambda: last.T @ last)
        whole = self._kept("whole", lambda: (first @ first.T) * gram)

        def inner(p: Tensor, q: Tensor) -> Tensor:
            return (((slope * p) @ gram) * (slope * q)).sum(1)

        total = ((slope @ whole) * slope).sum(1)
        for v, w in out:
            total = total - 2 / over * inner(w @ first.T, v)
            for other, way in out:
                total = total + inner(v, other) * (w * way).sum(1) / over**2
        return (total.clamp_min(0) / width).sqrt() * scale

    def _slope(self, inputs: Tensor) -> Tensor:
        """[M, K]: the derivative of the activation, which goes number by number."""
        inside = Body(self.first, self.bias, lambda x: x, self.norm)(inputs)
        with torch.inference_mode(False), torch.enable_grad():
            inside = inside.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.act(inside).sum(), inside)
        return slope

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


@dataclass(frozen=True, eq=False)
class _Groups:
    """Tokens and moves behind a norm over G groups of W numbers each, but for its division."""

    inside: Tensor
    """[G, M, K]: the first layer on what is normalised."""
    along: Tensor
    """[G, m, K]: on the moves."""
    square: Tensor
    """[G, M, 1]: mean square of what is normalised, with eps."""
    product: Tensor
    """[G, m, M]: its mean product with the moves."""
    moved: Tensor
    """[G, m, 1]: mean square of the moves."""

    @classmethod
    def of(cls, norm: Norm, weight: Tensor, rows: Tensor, moves: Tensor) -> _Groups:
        """Of [M, G, W] tokens and [m, G, W] moves."""
        over = len(norm.weight)
        if norm.centred:
            rows, moves = (x - x.mean(-1, keepdim=True) for x in (rows, moves))
        rows, moves = rows.transpose(0, 1), moves.transpose(0, 1)
        across = (_groups(weight, over) * norm.weight.to(weight)).permute(1, 2, 0)
        return cls(
            rows @ across,
            moves @ across,
            rows.square().mean(-1, keepdim=True) + norm.eps,
            moves @ rows.transpose(1, 2) / over,
            moves.square().mean(-1, keepdim=True),
        )

    def at(self, some: slice, step: float, constant: Tensor | None) -> Tensor:
        """[m', M, K]: the tokens after a step along some of the moves."""
        total: Tensor | None = None
        for inside, along, square, product, moved in zip(
            self.inside, self.along, self.square, self.product, self.moved, strict=True
        ):
            length = square[:, 0] + 2 * step * product[some] + step**2 * moved[some]
            part = (inside + step * along[some, None]) * length.rsqrt()[..., None]
            total = part if total is None else total.add_(part)
        assert total is not None
        return total if constant is None else total.add_(constant)


def _groups(rows: Tensor, width: int) -> Tensor:
    """[M, G * W] -> [M, G, W]."""
    return rows.view(len(rows), -1, width)


def _summed(rows: Tensor, patches: int) -> Tensor:
    """[M, P * D] -> [M, D]: over the patches, which move alike."""
    return rows.view(len(rows), patches, -1).sum(1)


def _to(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else x.to(like)
