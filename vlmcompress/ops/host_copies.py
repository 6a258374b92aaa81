"""Values of the device on the host: several tensors for one wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, those that are there already as they are.

    Waits once for each device, whatever the shapes and dtypes.
    """
    found = list(tensors)
    for device in {one.device for one in tensors if one.device.type != "cpu"}:
        places = [place for place, one in enumerate(tensors) if one.device == device]
        raw = [tensors[place].detach().contiguous().flatten().view(torch.uint8) for place in places]
        parts = torch.split(torch.cat(raw).cpu(), [len(one) for one in raw])
        for place, part in zip(places, parts, strict=True):
            like = tensors[place]
            # A copy begins at an address that suits its dtype, a slice may not.
            found[place] = part.clone().view(like.dtype).view(like.shape)
    return found
