"""The token ids and the mask of a prefill on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.ops.host_copies import on_cpu


@dataclass(frozen=True)
class HostChunk:
    """What a prefill looks at before it plans, read with one wait for the device."""

    ids: Tensor
    """[B, L] int64, on the CPU: of the chunk."""
    mask: Tensor | None
    """[B, past + L], on the CPU: the caller's attention mask."""

    @classmethod
    def of(cls, ids: Tensor | None, mask: Tensor | None) -> HostChunk:
        """Copy both.

        Raises:
            UnsupportedCallError: there are no ids.
        """
        if ids is None:
            raise UnsupportedCallError(
                "a compressed model needs input_ids beside the images, not inputs_embeds"
            )
        found = on_cpu([ids] if mask is None else [ids, mask])
        return cls(found[0], None if mask is None else found[1])

    @property
    def unmasked(self) -> Tensor:
        """[B, L] bool, on the CPU: columns of the chunk that the mask leaves open."""
        if self.mask is None:
            return torch.ones_like(self.ids, dtype=torch.bool)
        return self.mask[:, -self.ids.shape[1] :].bool()
