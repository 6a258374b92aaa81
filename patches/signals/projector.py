"""A projector taken apart, for methods that probe it: all but its last linear layer, and that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlmcompress.ops.projector import Body, Norm
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.tokens import Projection

_FORMS = (
    ("", "linear_1", "act", "linear_2"),
    ("projector_layernorm", "linear_1", "act", "linear_2"),
    ("layer_norm", "linear_1", "act", "linear_2"),
    ("ln_q", "mlp.0", "mlp.1", "mlp.2"),
    ("norm", "linear_fc1", "act_fn", "linear_fc2"),
)
"""Norm, linear layer, activation and last linear layer as projectors name them."""


_Weights = tuple[tuple[Tensor, int, torch.dtype, torch.device], ...]
_kept: WeakKeyDictionary[nn.Module, tuple[_Weights, dict[str, Tensor]]] = WeakKeyDictionary()
"""What was worked out from the weights of a projector, and from which."""


@dataclass(frozen=True)
class Parts:
    """A projector: all but its last layer, and that."""

    body: Body
    last: nn.Linear


def parts_of(projector: nn.Module) -> Parts | None:
    """The parts of a projector, None where it has another form or weights that are no matrices.

    The modules are not called: they have hooks, and weights of another dtype.
    """
    children = {name for name, _ in projector.named_children()}
    for names in _FORMS:
        if children == {name.partition(".")[0] for name in names if name}:
            norm, first, act, last = (projector.get_submodule(n) if n else None for n in names)
            if _plain(first) and _plain(last) and _known(norm):
                scale: list[Any] = [] if norm is None else [norm.weight]
                kept = _kept_of(projector, [first.weight, last.weight, *scale])
                body = Body(first.weight.detach(), first.bias, act, _norm(norm), kept)  # type: ignore[arg-type]
                return Parts(body, last)
    return None


def _kept_of(projector: nn.Module, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Empty unless the weights are the same as before."""
    now = tuple(
        (one, 0 if one.is_inference() else one._version, one.dtype, one.device) for one in weights
    )
    known = _kept.get(projector)
    if known is None or any(
        one[0] is not other[0] or one[1:] != other[1:]
        for one, other in zip(known[0], now, strict=True)
    ):
        known = _kept[projector] = now, {}
    return known[1]


def _norm(norm: Any) -> Norm | None:
    if norm is None:
        return None
    if isinstance(norm, nn.LayerNorm):
        return Norm(norm.weight.detach(), norm.bias, norm.eps, centred=True)
    return Norm(norm.weight.detach(), None, norm.variance_epsilon, centred=False)


def projections(
    encoder: Encoder, base: nn.Module, modality: str, call: Mapping[str, Any], inputs: Tensor
) -> list[Projection]:
    """For each piece of a feature call the projector with what entered it.

    Args:
        encoder: describes the vision side of `base`.
        base: the base model.
        modality: "image" or "video".
        call: arguments of the feature call by name.
        inputs: of its projector, as [B, m, P * D], or [M * P, D] where the patches of all images
            are one sequence.

    Returns:
        Per layout of the family; values at separators among the tokens are anything.
    """
    parts, patches = parts_of(base.get_submodule(encoder.projector)), encoder.patches(base)
    assert parts is not None
    if inputs.dim() == 2:
        inputs = inputs.reshape(len(inputs) // patches, -1)

    def piece(number: int, own: Tensor) -> Projection:
        def to_tokens(values: Tensor) -> Tensor:
            grid = values.float().view(own.shape[:-1])[..., None]
            return encoder.packed(base, modality, grid, call, number)[:, 0]

        rows = own.reshape(-1, patches, own.shape[-1] // patches)
        return Projection(rows, parts.body, parts.last.weight.detach(), to_tokens)

    return [piece(*one) for one in enumerate(encoder.pieces(base, modality, inputs, call))]


def only(projection: Projection, tokens: Tensor | slice) -> Projection:
    """The same for some of the tokens: a mask [N], indices or a slice."""
    places = tokens
    if isinstance(tokens, Tensor) and tokens.dtype == torch.bool:
        places = tokens.nonzero()[:, 0]

    def to_tokens(values: Tensor) -> Tensor:
        found = projection.to_tokens(values)
        # A clone: autograd in `used_by` takes no indices that were made under inference mode.
        return found[places.to(found.device).clone() if isinstance(places, Tensor) else places]

    return replace(projection, to_tokens=to_tokens)


def used_by(projection: Projection, tokens: Tensor | slice) -> Projection:
    """Only those of the projected features that become some of the tokens."""
    cut = only(projection, tokens)
    with torch.inference_mode(False), torch.enable_grad():
        values = torch.zeros(len(projection.inputs), requires_grad=True)
        (share,) = torch.autograd.grad(cut.to_tokens(values).sum(), values)
    used = share.nonzero()[:, 0]

    def to_tokens(values: Tensor) -> Tensor:
        whole = values.new_zeros(len(share))
        whole[used.to(values.device)] = values
        return cut.to_tokens(whole)

    inputs = projection.inputs[used.to(projection.inputs.device)]
    return replace(projection, inputs=inputs, to_tokens=to_tokens)


def join_projections(pieces: list[Projection]) -> Projection:
    """Those of the pieces of an image, one after the other."""
    counts = [len(piece.inputs) for piece in pieces]

    def to_tokens(values: Tensor) -> Tensor:
        parts = zip(pieces, torch.split(values, counts), strict=True)
        return torch.cat([piece.to_tokens(part) for piece, part in parts])

    inputs = torch.cat([piece.inputs for piece in pieces])
    return replace(pieces[0], inputs=inputs, to_tokens=to_tokens)


def _plain(layer: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer whose weight is there, and a matrix of real numbers."""
    return (
        type(layer) is nn.Linear and layer.weight.is_floating_point() and not layer.weight.is_meta
    )


def _known(norm: nn.Module | None) -> bool:
    return norm is None or isinstance(norm, nn.LayerNorm) or hasattr(norm, "variance_epsilon")
