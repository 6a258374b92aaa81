"""Attention rows for decoder-stage methods, of layers whose attention is watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError, VLMCompressError
from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.decoder.captured_attention import rehearse
from vlmcompress.patches.decoder.cut_context import CutContext, Of
from vlmcompress.patches.sequence.attended import Attended

_ROTARY = "position_embeddings"
_BLOCK = 16 * 2**20
"""Weights that are made at a time, where all rows are asked for."""


@dataclass
class CapturedAttention(CutContext):
    """What layers that have run kept for themselves; one that is about to run is rehearsed."""

    now: CallState
    arguments: Mapping[str, Any]
    """Of `layer` by name, at the stage before the cut."""
    _rehearsed: dict[tuple[int, bool], Attended | None] = field(default_factory=dict)

    def rows(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        return self._weights(of, rope, row, queries)[..., -self.hidden.shape[1] :]

    def rows_among(self, of: Of, rope: bool, row: int, queries: Tensor, slots: Tensor) -> Tensor:
        attended = self.attended(of, rope)
        slots = slots.to(attended.keys.device) + attended.past
        only = torch.zeros(attended.keys.shape[2], dtype=torch.bool, device=slots.device)
        only[slots] = True
        with self._explained(self.number(of)):
            weights = attended.weights(row, queries, only, masked=False)[..., slots]
        return _share(weights).to(self.hidden.device)  # what a sink takes is not there either

    def spread(
        self, of: Of, row: int, mass: Tensor, known: Tensor, temperature: float, steps: int
    ) -> Tensor:
        for _ in range(steps):
            mass = self._handed_on(of, row, mass * known, temperature)
        return mass

    def _handed_on(self, of: Of, row: int, mass: Tensor, temperature: float) -> Tensor:
        """[H, Q]: one step."""
        slots = torch.arange(self.hidden.shape[1], device=self.hidden.device)
        attended = self.attended(of, True)
        width = attended.keys.shape[2] * attended.queries.shape[1]
        found: Tensor | None = None
        for some in torch.split(slots, max(1, _BLOCK // width)):
            weights = self._weights(of, True, row, some)
            weights = _share(weights.pow(1 / temperature)) if temperature != 1 else weights
            own = mass[..., some].expand(len(weights), -1)
            with torch.autocast(weights.device.type, enabled=False):
                part = torch.einsum("hr,hrk->hk", own.float(), weights.nan_to_num())
            found = part if found is None else found + part
        assert found is not None
        return found[..., -len(slots) :]

    def chunk_keys(self, of: Of, rope: bool) -> Tensor:
        return self.attended(of, rope).chunk_keys.to(self.hidden.device)

    def attended(self, of: Of, rope: bool) -> Attended:
        """What the layer that `of` names attends with.

        Raises:
            UnsupportedCallError: it is known of some layers only.
            UnsupportedModelError: the layer has no attention that can be watched.
        """
        number, earlier = self.number(of), self.stages.earlier
        if rope and number in earlier.attended:
            return earlier.attended[number]
        if (number, rope) not in self._rehearsed:
            self._rehearsed[number, rope] = self._rehearse(number, rope)
        found = self._rehearsed[number, rope]
        if found is None:
            raise UnsupportedModelError(
                f"decoder layer {number} ({type(self.layers[number]).__name__}) has no attention "
                "that can be watched: use a projector-stage method"
            )
        return found

    def _rehearse(self, number: int, rope: bool) -> Attended | None:
        if self.stages.past:
            raise UnsupportedCallError(
                "a new image on an earlier turn can be ranked by the attention of a layer that has "
                f"run, and decoder layer {number} {'has not' if rope else 'ran with positions'}: "
                "use a method that ranks in the layer before, a projector-stage one, or a new cache"
            )
        if number == self.layer:
            hidden, arguments = self.hidden, self.arguments
        elif number in self.stages.earlier.calls:
            hidden, arguments = self.stages.earlier.calls[number]
        else:
            raise UnsupportedCallError(
                f"before decoder layer {self.layer} the attention of layer {number} is not known "
                f"{'yet' if number > self.layer else 'without positions any more'}: use a method "
                "that ranks in the layer before, or a projector-stage method"
            )
        if not rope:
            arguments = {**arguments, _ROTARY: _without_turning(arguments.get(_ROTARY))}
        with self._explained(number):
            return rehearse(self.layers[number], hidden, arguments, self.now)

    def _weights(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        """[H, R, P + Q] float32."""
        attended = self.attended(of, rope)
        past = self.past_seen(of, attended.past) if attended.past else None
        seen = self.seen(of, row, queries, past)
        with self._explained(self.number(of)):
            return attended.weights(row, queries, seen).to(self.hidden.device)

    @contextmanager
    def _explained(self, number: int) -> Iterator[None]:
        """Whatever goes wrong in code of a model that no test has seen is said in one line."""
        try:
            yield
        except (VLMCompressError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"the attention of decoder layer {number} ({type(self.layers[number]).__name__}) "
                f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())}): use a "
                "projector-stage method"
            ) from error


def _share(weights: Tensor) -> Tensor:
    """Of each row, so that it sums to 1."""
    return weights / weights.sum(-1, keepdim=True)


def _without_turning(rotary: Any) -> Any:
    """Rotary embeddings, a pair or one complex tensor, that leave queries and keys as they are."""
    if rotary is None:
        return None
    if isinstance(rotary, Tensor):
        return torch.ones_like(rotary)
    cos, sin = rotary
    return torch.ones_like(cos), torch.zeros_like(sin)
