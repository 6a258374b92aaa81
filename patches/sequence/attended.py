"""What a layer attended with, and the attention weights of some of its rows.

The weights are those of the layer's own eager function, so that whatever it adds to the products of
queries and keys (biases of distances, sinks, caps) is among them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.ops.gather import take, take_pairs

EAGER = "eager_attention_forward"
"""What each file of transformers calls the attention that it computes by itself."""


@dataclass(frozen=True, eq=False)
class Attended:
    """Queries and keys as a layer made them, with all else that its attention was given."""

    module: nn.Module
    """The layer's attention."""
    queries: Tensor
    """[B, H, Q, hd] of the chunk's tokens."""
    keys: Tensor
    """[B, Hkv, P + Q, hd] of earlier turns and of the chunk."""
    mask: Tensor | None
    """[B or 1, 1, Q, P + Q] bool or float, or None; FlashAttention is given one of another form."""
    options: dict[str, Any]
    """Further arguments by name, such as `scaling`."""

    @property
    def past(self) -> int:
        """Keys of earlier turns."""
        return self.keys.shape[2] - self.queries.shape[2]

    @property
    def chunk_keys(self) -> Tensor:
        """[B, Hkv, Q, hd]."""
        return self.keys[:, :, self.past :]

    def left(self, index: Tensor) -> Attended:
        """The same of the chunk's tokens at `index` [B, Q'] alone."""
        places = torch.arange(self.past, device=index.device).expand(len(index), -1)
        places = torch.cat([places, index + self.past], 1)

        def pairs(given: Tensor) -> Tensor:
            heads = [take_pairs(head, index, places) for head in given.unbind(1)]
            return torch.stack(heads, 1)

        return replace(
            self,
            queries=_take(self.queries, index),
            keys=_take(self.keys, places),
            mask=None if self.mask is None else pairs(self.mask),
            options={k: pairs(v) if self._is_of_pairs(v) else v for k, v in self.options.items()},
        )

    def weights(self, row: int, rows: Tensor, seen: Tensor, *, masked: bool = True) -> Tensor:
        """Attention weights of some queries of one row of the batch.

        Args:
            row: of the batch.
            rows: [R] int64 places in the chunk.
            seen: [R, P + Q] bool, or broadcast to it: what they may attend to.
            masked: only where the layer's own mask lets them.

        Returns:
            [H, R, P + Q] float32 (also under autocast).
        """
        some = rows.to(self.queries.device)

        def own(given: Tensor) -> Tensor:
            return given[row if len(given) > 1 else 0][None, :, some]

        seen = seen.to(some.device).expand(len(some), -1)[None, None]
        if self.mask is not None and masked:
            shown = own(self.mask)
            least = 0 if shown.dtype == torch.bool else torch.finfo(shown.dtype).min / 2
            seen = seen & (shown > least)
        closed = torch.finfo(torch.float32).min
        mask = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, closed)
        keys = self.keys[row : row + 1].float()
        options = {k: own(v) if self._is_of_pairs(v) else v for k, v in self.options.items()}
        with torch.autocast(keys.device.type, enabled=False):
            found = eager_of(self.module)(
                self.module, own(self.queries).float(), keys, keys, mask, **options, dropout=0.0
            )
        weights: Tensor = found[1]
        return weights[0].detach().float()

    def _is_of_pairs(self, value: Any) -> bool:
        """Whether an argument has a number for each query and key, as biases of distances."""
        pairs = self.queries.shape[2], self.keys.shape[2]
        return isinstance(value, Tensor) and value.dim() == 4 and value.shape[2:] == pairs


def _take(heads: Tensor, index: Tensor) -> Tensor:
    """[B, H, K, hd] of the tokens at `index` [B, K]."""
    return take(heads.transpose(1, 2), index).transpose(1, 2)


def eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file in which a module is written, as its forward names it.

    Raises:
        UnsupportedModelError: there is none.
    """
    code: Any = inspect.unwrap(type(module).forward).__code__
    named = (name for name in code.co_names if name.endswith(EAGER))
    known = vars(sys.modules[type(module).__module__])
    found: Callable[..., Any] | None = known.get(next(named, EAGER))
    if found is None:
        raise UnsupportedModelError(
            f"{type(module).__module__} has no {EAGER}(), by which decoder-stage methods rank: use "
            "a projector-stage method"
        )
    return found
