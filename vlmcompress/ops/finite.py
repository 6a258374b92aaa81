"""Features as float32, refused where they are no numbers."""

from __future__ import annotations

from torch import Tensor

from vlmcompress.errors import VLMCompressError


def finite(features: Tensor) -> Tensor:
    """The same as float32, without gradient.

    Args:
        features: [..., D] any floating dtype.

    Raises:
        VLMCompressError: a row is NaN or infinite.
    """
    features = features.detach().float()
    lost = ~features.isfinite().all(dim=-1)
    if bool(lost.any()):
        raise VLMCompressError(
            f"features must be finite: {int(lost.sum())} of {lost.numel()} rows are NaN or infinite"
        )
    return features
