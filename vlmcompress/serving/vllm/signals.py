"""Signals of vLLM's vision towers: queries and keys recorded while they encode."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group

from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.serving.counts import method_of
from vlmcompress.serving.vllm.family import Family, shown
from vlmcompress.tokens import Layout


@dataclass
class AttentionCall:
    """One call of vLLM's attention of a vision layer, for images as a batch or in one sequence."""

    query: Tensor
    """[B, H, n, d] or [H, P, d], after norms and rotary embedding."""
    key: Tensor
    flat: Tensor
    """[B, n, H * d] or [P, H * d]: keys before rotary embedding."""
    scale: float
    lengths: list[int] | None
    """Tokens that attend to one another, where all patches are one sequence."""
    shared: bool = False
    """Whether each rank of a tensor-parallel group has some of the heads."""

    def received(self) -> Tensor:
        """[B, n, 1] or [P, 1] float32: attention received, mean over heads and queries."""
        if self.lengths is None:
            found = attention_received(self.query, self.key, self.scale)
        else:
            found = attention_received_packed(self.query, self.key, self.scale, self.lengths)
        return self._mean(found)[..., None]

    def cls_row(self) -> Tensor:
        """[B, n, 1] float32: attention of token 0, mean over heads."""
        rows = attention_rows(self.query[:, :, :1], self.key, self.scale, mean=True)
        return self._mean(rows[:, 0])[..., None]

    def keys(self) -> Tensor:
        """[B, n, H * d] or [P, H * d], of all heads."""
        if not self.shared:
            return self.flat
        gathered: Tensor = get_tp_group().all_gather(self.flat, dim=-1)
        return gathered

    def _mean(self, own: Tensor) -> Tensor:
        """Over the ranks."""
        if not self.shared:
            return own
        group = get_tp_group()
        mean: Tensor = group.all_reduce(own) / group.world_size
        return mean


_LOOKS = {
    "encoder_attention": AttentionCall.received,
    "cls_attention": AttentionCall.cls_row,
    "keys": AttentionCall.keys,
}
_OF_LAYERS = {"encoder_attention", "layer_cls_attention", "layer_keys"}
"""Signals of the layers that a method asks for; others are of the feature layer."""


class TowerTaps:
    """Hooks on the attention of all layers of one tower; they record only when asked to."""

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        self._encoder: Encoder = family.encoder
        self._base = shown(config)
        layers: Any = model.get_submodule(family.tower)
        self._heads = _of_tower(config, ("num_attention_heads", "num_heads"))
        self.depth = self._encoder.depth(
            self._base, _of_tower(config, ("num_hidden_layers", "depth"))
        )
        self._projected: Any = None
        self._wanted: frozenset[int] = frozenset()
        self._calls: dict[int, list[AttentionCall]] = defaultdict(list)
        for number, layer in enumerate(layers[: self.depth]):
            attention = layer.get_submodule(family.attention)
            if family.projection is not None:
                projection = attention.get_submodule(family.projection)
                projection.register_forward_hook(functools.partial(self._project, number))
            attention.attn.register_forward_pre_hook(
                functools.partial(self._see, number), with_kwargs=True
            )

    def layers_of(self, method: str, wanted: Collection[str]) -> dict[str, list[int]]:
        """Signal of the tower -> the layers that a method wants it of.

        Raises:
            UnsupportedModelError: there is no such layer.
        """
        whole = self._encoder.full_attention_layers(self._base, self.depth)
        return layers_of(method, wanted, whole, self.depth)

    @contextmanager
    def recording(self, layers: frozenset[int]) -> Iterator[None]:
        """While a batch is encoded."""
        self._wanted = layers
        self._calls.clear()
        try:
            yield
        finally:
            self._wanted, self._projected = frozenset(), None

    def _project(self, number: int, module: nn.Module, args: Any, output: Any) -> None:
        if number in self._wanted:
            self._projected = output[0] if isinstance(output, tuple) else output

    def _see(self, number: int, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if number not in self._wanted:
            return
        given = dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)) | kwargs
        query, key, ends = given["query"], given["key"], given.get("cu_seqlens")
        heads, size = module.num_heads, module.head_size
        shape = (query.shape[0], -1, heads, size)
        query, key = (one.reshape(shape).transpose(1, 2) for one in (query, key))
        lengths = None
        flat = key.transpose(1, 2).flatten(2)
        if ends is not None:
            lengths = [b - a for a, b in pairwise(ends.tolist()) if b > a]
            query, key, flat = query[0], key[0], flat[0]
        if self._projected is not None:
            flat = self._projected.reshape(-1, 3, heads * size)[:, 1]
        shared = heads < self._heads
        self._calls[number].append(AttentionCall(query, key, flat, module.scale, lengths, shared))

    def collect(
        self,
        layers: Mapping[str, Sequence[int]],
        modality: str,
        call: Mapping[str, Any],
        layouts: Sequence[Layout],
    ) -> list[dict[str, Any]]:
        """The signals of each image of the batch that was recorded, as `VisualTokens` has them."""
        found: list[dict[str, Any]] = [{} for _ in layouts]
        for name, numbers in layers.items():
            look = _LOOKS[name.removeprefix("layer_")]
            for number in numbers:
                seen = torch.cat([look(one) for one in self._calls[number]])
                tokens = self._encoder.to_tokens(self._base, modality, seen, call)
                pieces = _joined(tokens, layouts)
                for mine, piece, layout in zip(found, pieces, layouts, strict=True):
                    values = piece[layout.visual.to(piece.device)]
                    values = values[:, 0] if name.endswith("attention") else values
                    if name in _OF_LAYERS:
                        mine.setdefault(name, {})[number] = values
                    else:
                        mine[name] = values
        return found


def layers_of(
    method: str, wanted: Collection[str], whole: Sequence[int], depth: int
) -> dict[str, list[int]]:
    """See `TowerTaps.layers_of`."""
    found: dict[str, list[int]] = {}
    for name in sorted(set(wanted) & ({*_LOOKS} | _OF_LAYERS)):
        asked = (
            method_of(method).encoder_layers(depth, whole) if name in _OF_LAYERS else [depth - 1]
        )
        found[name] = sorted(asked)
    return found


def _joined(pieces: Sequence[Tensor], layouts: Sequence[Layout]) -> Iterator[Tensor]:
    """[placeholders, C] of each image: of InternVL the pieces are its tiles."""
    rest = iter(pieces)
    for layout in layouts:
        own = [next(rest)]
        while sum(map(len, own)) < layout.placeholders:
            own.append(next(rest))
        yield torch.cat(own)


def _of_tower(config: Any, names: Sequence[str]) -> int:
    """A number of the tower as checkpoints have it: vLLM builds fewer layers, and shares heads."""
    return next(
        int(getattr(config.vision_config, n)) for n in names if hasattr(config.vision_config, n)
    )
