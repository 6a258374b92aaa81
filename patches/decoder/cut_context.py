"""What is known before a decoder layer where tokens are about to be dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.sequence.attention_masks import Reach, VisibleKeys, has_keys, inside
from vlmcompress.patches.sequence.stage_layout import StageLayout

Of = Literal["this", "next", "previous"]


@dataclass
class CutContext(ABC):
    """All that is known before `layer`. Subclasses say where queries and keys come from."""

    layer: int
    layers: nn.ModuleList
    stages: StageLayout
    hidden: Tensor
    """[B, Q, D]: input of `layer`, or [B, Q, S, D] of a decoder that keeps S streams."""

    @abstractmethod
    def rows(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        """[H, R, Q] float32: attention of some slots [R] of one row of the batch to its chunk.

        Keys of earlier turns take part in the softmax.
        """

    @abstractmethod
    def rows_among(self, of: Of, rope: bool, row: int, queries: Tensor, slots: Tensor) -> Tensor:
        """[H, R, V] float32: the same to some slots [V] alone, as if nothing else were there."""

    @abstractmethod
    def spread(
        self, of: Of, row: int, mass: Tensor, known: Tensor, temperature: float, steps: int
    ) -> Tensor:
        """[H, Q] float32: `mass` [Q], [H, Q] or [1] after some steps over the attention graph.

        Only tokens that are `known` [Q] bool hand on what they have.
        """

    @abstractmethod
    def chunk_keys(self, of: Of, rope: bool) -> Tensor:
        """[B, Hkv, Q, hd]: keys of the chunk's tokens at the current stage."""

    def reach(self, of: Of) -> Reach | None:
        """How far back the layer that `of` names sees."""
        return self.stages.kinds.reach_of(self.kind(of))

    def kind(self, of: Of) -> str:
        """The kind of that layer, as the configuration calls it."""
        return self.stages.kinds.names[self.number(of)]

    def number(self, of: Of) -> int:
        """The layer that `of` names; where it does not see all of the prompt, the nearest before it
        that does.

        Raises:
            UnsupportedCallError: there is no such layer, or none that attends to tokens.
        """
        number, kinds = self.meant(of), self.stages.kinds
        found = kinds.ranks_in(number)
        if not has_keys(kinds.names[found]):
            attend = (n for n, kind in enumerate(kinds.names) if has_keys(kind))
            first = next(attend, len(self.layers)) + self.layer - number
            raise UnsupportedCallError(
                f"tokens cannot be ranked before decoder layer {self.layer}, as no layer up to "
                f"layer {number} has attention ({kinds.names[number]}): cut before one of the "
                f"layers {first} to {len(self.layers) - 1}"
            )
        return found

    def meant(self, of: Of) -> int:
        """The layer that `of` names, whatever it sees.

        Raises:
            UnsupportedCallError: there is no such layer.
        """
        number = self.layer + {"previous": -1, "this": 0, "next": 1}[of]
        if number >= len(self.layers):
            raise UnsupportedCallError(f"there is no layer after decoder layer {self.layer}")
        return number

    def seen(self, of: Of, row: int, queries: Tensor, past: VisibleKeys | None) -> Tensor:
        """[R, P + Q] bool: which keys some slots [R] attend to; none where padding.

        Args:
            of: the layer.
            row: of the batch.
            queries: [R] slots.
            past: what the keys of earlier turns stand for.
        """
        kind, reach = self.kind(of), self.reach(of)
        chunk = self.stages.counted(kind, self.stages.chunk_seen())
        queries = queries.to(chunk.columns.device)
        given: Any = self.stages.given_masks
        given = given.get(kind) if isinstance(given, Mapping) else given
        given = given[row : row + 1] if given is not None and len(given) > 1 else given
        columns = chunk.columns[row]
        both_ways = self.stages.kinds.both_ways
        own = inside(columns[None], given, self.stages.past, reach, queries, both_ways)[0]
        reached = [] if past is None else [past.reached(row, columns[queries], reach)]
        if chunk.valid is not None:
            own = own & chunk.valid[row]
        seen = torch.cat([*reached, own], 1)
        seen = seen if chunk.valid is None else seen & chunk.valid[row, queries, None]
        return seen.to(self.hidden.device)

    def past_seen(self, of: Of, held: int) -> VisibleKeys:
        """What the newest `held` keys of earlier turns stand for."""
        seen = self.stages.past_seen(self.number(of)).last(held)
        return self.stages.counted(self.kind(of), seen)
