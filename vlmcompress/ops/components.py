"""Principal components of tokens, without a full decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 2
"""Of the subspace iteration, as in the routine that PruneSID's code calls."""


def component_of(features: Tensor, count: int) -> Tensor:
    """The principal component that each token has the largest part in.

    Tokens are the variables: the matrix [D, N] of the sigmoids of all features, centred over the D
    channels, is decomposed by subspace iteration from fixed random directions, and token n belongs
    to the component c of the largest |V[n, c]|, of equals the first.

    Args:
        features: [N, D] finite, any floating dtype; computed in float32 (also under autocast).
        count: components, clamped to 1..min(N, D).

    Returns:
        [N] int64, numbers of components.

    Source: PruneSID, arXiv 2603.09480, section 3, official code.
    """
    with torch.autocast(features.device.type, enabled=False):
        signs = features.detach().float().sigmoid()
        matrix = (signs - signs.mean(dim=1, keepdim=True)).mT
        count = max(1, min(count, *matrix.shape))
        draw = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], count, generator=draw).to(matrix.device)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(matrix.mT @ basis).Q
            basis = torch.linalg.qr(matrix @ basis).Q
        parts: Tensor = torch.linalg.svd(basis.mT @ matrix, full_matrices=False).Vh
    return parts.abs().argmax(dim=0)
