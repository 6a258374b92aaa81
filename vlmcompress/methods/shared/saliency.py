"""How much a vision tower attends to each token: the score that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.tokens import VisualTokens

NEED = "cls_attention|encoder_attention"
"""For `Method.needs`: what `saliency` reads."""


def saliency(tokens: VisualTokens) -> Tensor:
    """[N] float32: the attention of CLS, or that received from all tokens where there is no CLS.

    The second is that of the deepest layer collected; which one, says `Method.encoder_layers`.

    Raises:
        VLMCompressError: neither was collected, or one of the values is NaN or infinite.
    """
    received = tokens.encoder_attention
    if tokens.cls_attention is not None:
        return check_signal("cls_attention", tokens.cls_attention, tokens)
    if not received:
        raise VLMCompressError(
            "cls_attention or encoder_attention is needed, these tokens have neither"
        )
    return check_signal("encoder_attention", received[max(received)], tokens)


def received(name: str, tokens: VisualTokens) -> dict[int, Tensor]:
    """ViT layer -> [N] float32 attention received, of the layers that were collected.

    Args:
        name: of the method, for messages.
        tokens: whose values they are.

    Raises:
        VLMCompressError: none were collected, or one of the values is NaN or infinite.
    """
    if not tokens.encoder_attention:
        raise VLMCompressError(f"{name} needs encoder_attention, these tokens have none")
    return {
        layer: check_signal("encoder_attention", values, tokens)
        for layer, values in tokens.encoder_attention.items()
    }


def check_signal(name: str, values: Tensor, tokens: VisualTokens) -> Tensor:
    """`values` as float32, one finite number per token and on the device of the features.

    Args:
        name: of the signal, for the message.
        values: [N] any dtype.
        tokens: whose values they are.

    Raises:
        VLMCompressError: another number of values, or one of them is NaN or infinite.
    """
    values = values.detach().to(tokens.features.device, torch.float32)
    if values.shape != (len(tokens.grid),):
        raise VLMCompressError(
            f"{name} must be one number for each of {len(tokens.grid)} tokens, "
            f"got shape {tuple(values.shape)}"
        )
    finite = values.isfinite()
    expect(
        finite.all(),
        lambda: VLMCompressError(
            f"{name} must be finite: {int((~finite).sum())} of {len(values)} values are not"
        ),
    )
    return values
