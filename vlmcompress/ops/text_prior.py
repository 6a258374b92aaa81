"""How much visual tokens matter, told by the text tokens that matter."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError


def text_importance(attention: Tensor, lam: float = 1.0) -> Tensor:
    """What each text token receives from later text, pays to earlier text and to itself.

    With P the attention among the text tokens of one head and S = P + P^T - diag(P), the importance
    of token j is the sum over i of F[i, j], where F = (1 - lam) * mean(S) + lam * S.

    Args:
        attention: [H, T, T], row by row what a text token pays; rows need not sum to 1.
        lam: 1 for S itself, 0 for equal importance.

    Returns:
        [H, T] float32.

    Raises:
        VLMCompressError: there are no text tokens.

    Source: AdaptInfer, arXiv 2508.06084, and its code; the mean of S over one head is ours.
    """
    if attention.shape[-1] == 0:
        raise VLMCompressError("text tokens weigh visual tokens, but there are none")
    paid = attention.detach().float()
    both = paid + paid.transpose(-1, -2) - torch.diag_embed(paid.diagonal(dim1=-2, dim2=-1))
    flat = both.mean(dim=(-2, -1))[..., None]
    return (1 - lam) * flat * both.shape[-1] + lam * both.sum(-2)


def weigh_by_text(to_text: Tensor, to_visual: Tensor, lam: float = 1.0) -> Tensor:
    """Attention that visual tokens receive from text, each row weighed by its importance.

    Args:
        to_text: [H, T, T] attention of the text to itself.
        to_visual: [H, T, V] attention of the text to the visual tokens, of the same softmax.
        lam: as for `text_importance`.

    Returns:
        [V] float32, summed over heads.
    """
    with torch.autocast(to_visual.device.type, enabled=False):
        importance = text_importance(to_text, lam)
        return (importance[:, None] @ to_visual.detach().float()).sum(dim=(0, 1))


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """The text tokens that the visual tokens are more like than they are like the mean one.

    Each visual token spreads itself over the text by softmax(visual @ text^T); raters are the text
    tokens that get more than the mean. Where all get the same, all are raters.

    Args:
        visual: [V, D] hidden states.
        text: [T, D] hidden states.

    Returns:
        [T] bool, at least one of them true.

    Raises:
        VLMCompressError: there are no text tokens.

    Source: SparseVLM, arXiv 2410.04417, section 3.2.
    """
    if len(text) == 0:
        raise VLMCompressError("text tokens rate visual tokens, but there are none")
    with torch.autocast(visual.device.type, enabled=False):
        shares = (visual.detach().float() @ text.detach().float().T).softmax(-1).mean(0)
    # Rounding is not to tell tokens apart that get the same.
    raters = shares > shares.mean() + 1e-6
    return raters | ~raters.any()
