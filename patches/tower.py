"""Attention and keys of a vision tower, computed from what goes into its attention modules.

The attention implementation of the model stays as it is: only the rows or column sums that a method
needs are computed, with the module's own projections, norms and rotary function.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.pipeline import Pipeline
from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows
from vlmcompress.patches.encoders import Encoder, towers
from vlmcompress.patches.text_tower import TextTower
from vlmcompress.patches.threads import PerThread
from vlmcompress.tokens import Layout

FROM_TOWER = frozenset({"cls_attention", "encoder_attention", "keys", "relevance"})
"""Signals that come from a vision tower."""

Record = defaultdict[tuple[str, int], list[Any]]
"""("in", layer) -> calls of its attention module, ("out", layer) -> outputs of the layer."""


def attention_layers(tower: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Each layer of the encoder with its attention module, in order.

    They are found by their projections: the path to them changed between versions.
    """
    found = []
    for name, module in tower.named_modules():
        split = hasattr(module, "q_proj") and hasattr(module, "k_proj")
        if split or hasattr(module, "qkv"):
            found.append((tower.get_submodule(name.rpartition(".")[0]), module))
    return found


@dataclass(frozen=True)
class Seen:
    """One call of an attention module.

    A tower takes images as a batch [B, n, D] (`q_proj`, `k_proj`), or the patches of all images as
    one sequence [P, D] (`qkv`, with `cu_seqlens`). Results begin with [B, n] or [P] accordingly.
    """

    attention: Any
    hidden: Tensor
    kwargs: Mapping[str, Any]

    def received(self) -> Tensor:
        """[B, n] or [P] float32: attention received, mean over heads and the segment's queries."""
        q, k = self._heads(self._flat("q")), self._heads(self._flat("k"))
        if not self._packed:
            return attention_received(q, k, self._scaling, valid=self._valid())
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(self.attention).__module__]
        q, k = rotate.apply_rotary_pos_emb_vision(
            q.transpose(0, 1), k.transpose(0, 1), *self.kwargs["position_embeddings"]
        )
        lengths = self.kwargs["cu_seqlens"].diff().tolist()
        return attention_received_packed(
            q.transpose(0, 1), k.transpose(0, 1), self._scaling, lengths
        )

    def cls_row(self) -> Tensor:
        """[B, n] float32: attention of token 0 to all tokens, mean over heads."""
        q, k = self._heads(self._flat("q", rows=1)), self._heads(self._flat("k"))
        return attention_rows(q, k, self._scaling).mean(1)[:, 0]

    def keys(self) -> Tensor:
        """[B, n, Dk] or [P, Dk]: keys before rotary embedding, heads side by side."""
        return self._flat("k")

    @property
    def _packed(self) -> bool:
        return hasattr(self.attention, "qkv")

    @property
    def _scaling(self) -> float:
        attention = self.attention
        return float(attention.scale if hasattr(attention, "scale") else attention.scaling)

    def _flat(self, name: str, rows: int | None = None) -> Tensor:
        """Queries or keys of the first `rows` tokens (or all) after their norm, heads together."""
        if self._packed:
            fused: Tensor = self.attention.qkv(self.hidden)
            return fused.chunk(3, dim=-1)["qk".index(name)]
        flat: Tensor = getattr(self.attention, f"{name}_proj")(self.hidden[:, :rows])
        norm = getattr(self.attention, f"{name}_norm", None)
        return flat if norm is None else norm(flat)

    def _heads(self, flat: Tensor) -> Tensor:
        """[..., n, D] -> [..., H, n, d]."""
        heads = flat.reshape(*flat.shape[:-1], -1, self.attention.head_dim)
        return heads.transpose(-2, -3)

    def _valid(self) -> Tensor | None:
        """[B, n] bool from the mask of padded images, None without."""
        mask: Tensor | None = self.kwargs.get("attention_mask")
        if mask is None:
            return None
        if mask.dim() == 4:  # every query sees the same keys, so one row says all
            mask = mask[:, 0, 0]
            mask = mask if mask.dtype == torch.bool else mask == 0
        return mask.bool().expand(len(self.hidden), -1)


class Tap:
    """Hooks on the layers of the vision towers that a pipeline needs to know of, and no others."""

    text_tower: TextTower

    def __init__(self, encoder: Encoder, base: nn.Module, pipeline: Pipeline) -> None:
        """Find the layers.

        Raises:
            UnsupportedModelError: the features come from before the first layer, or layers with
                attention are not found.
            CompositionError: a method asks for a layer that the features do not go through.
        """
        self._encoder, self._base = encoder, base
        self._needs, self._name = pipeline.needs & FROM_TOWER, pipeline.name
        self._thread = PerThread()
        self._asked: list[int] = []
        self._layers = [attention_layers(tower) for tower in towers(encoder, base)]
        layers = min(map(len, self._layers))
        depth = encoder.depth(base, layers)
        if not 1 <= depth <= layers:
            raise UnsupportedModelError(
                f"{self._name} needs the attention of a layer of the vision tower, but the "
                f"features of this model come from after layer {depth} of {layers}"
            )
        self._feature = depth - 1
        if "encoder_attention" in self._needs:
            self._asked = _asked(pipeline, encoder.whole(base, depth), depth)

    @property
    def width(self) -> int:
        """Of the hidden states of the tower."""
        return int(self._layers[0][0][1].embed_dim)

    def hooks(self) -> list[RemovableHandle]:
        """Install them."""
        handles = []
        inputs = set(self._asked)
        if self._needs & {"cls_attention", "keys"}:
            inputs.add(self._feature)
        for layers in self._layers:
            for number in sorted(inputs):
                enter = functools.partial(self._enter, number)
                handles.append(layers[number][1].register_forward_pre_hook(enter, with_kwargs=True))
            if "relevance" in self._needs:
                handles.append(layers[self._feature][0].register_forward_hook(self._leave))
        return handles

    def _enter(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        record = getattr(self._thread, "record", None)
        if record is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            record["in", layer].append(Seen(module, hidden, kwargs))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        record = getattr(self._thread, "record", None)
        if record is not None:
            hidden = output[0] if isinstance(output, tuple) else output
            record["out", self._feature].append(hidden)

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """While a feature call runs in this thread; at other times the hooks do nothing."""
        self._thread.record = Record(list)
        try:
            yield self._thread.record
        finally:
            self._thread.record = None

    def collect(
        self, modality: str, call: Mapping[str, Any], layouts: Sequence[Layout], record: Record
    ) -> list[dict[str, Any]]:
        """The signals of each piece that a feature call encoded.

        Returns:
            Field -> [N, ...], for `encoder_attention` layer -> [N]; without separators. Under
            `relevance` still [N, C] unit vectors, to be multiplied with that of the text.
        """

        def tokens(values: list[Tensor]) -> list[Tensor]:
            if not values:
                raise UnsupportedCallError(
                    f"{self._name} could not look into the vision tower: "
                    "call compress() before torch.compile()"
                )
            pieces = self._encoder.to_tokens(self._base, modality, torch.cat(values), call)
            return [_visual(*one) for one in zip(pieces, layouts, strict=True)]

        found: list[dict[str, Any]] = [{} for _ in layouts]
        for layer in self._asked:
            received = tokens([seen.received()[..., None] for seen in record["in", layer]])
            for piece, values in zip(found, received, strict=True):
                piece.setdefault("encoder_attention", {})[layer] = values[:, 0]
        at_feature, after = record["in", self._feature], record["out", self._feature]
        fields: dict[str, Callable[[], list[Tensor]]] = {
            "cls_attention": lambda: [seen.cls_row()[..., None] for seen in at_feature],
            "keys": lambda: [seen.keys() for seen in at_feature],
            "relevance": lambda: [self.text_tower.look(hidden) for hidden in after],
        }
        for name in self._needs & fields.keys():
            for piece, values in zip(found, tokens(fields[name]()), strict=True):
                piece[name] = values[:, 0] if name == "cls_attention" else values
        return found


def _asked(pipeline: Pipeline, whole: Sequence[int], depth: int) -> list[int]:
    """The layers whose attention the methods want."""
    asking = (method for method in pipeline.methods if "encoder_attention" in method.needs)
    layers = sorted({layer for method in asking for layer in method.encoder_layers(depth, whole)})
    for layer in layers:
        if not 0 <= layer < depth:
            raise CompositionError(
                f"{pipeline.name} asks for ViT layer {layer}; the features of this model go "
                f"through layers 0 to {depth - 1}"
            )
    return layers


def _visual(values: Tensor, layout: Layout) -> Tensor:
    """[placeholders, C] -> [N, C], without separators."""
    return values[layout.visual.to(values.device)]
