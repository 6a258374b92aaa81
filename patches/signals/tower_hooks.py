"""Attention and keys of a vision tower, recorded while it encodes and worked out afterwards."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import CompositionError, UnsupportedModelError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.contracts.method import resolve
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.hooks.arguments import hidden_in, hidden_of
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import During
from vlmcompress.patches.hooks.unsupported import unreached
from vlmcompress.patches.sequence.attended import Attended
from vlmcompress.patches.sequence.watched_attention import watch
from vlmcompress.patches.signals.projector import only, projections
from vlmcompress.patches.signals.text_tower import TextTower
from vlmcompress.patches.signals.tower_attention import AttentionCall
from vlmcompress.tokens import Layout

Record = defaultdict[tuple[str, int], list[Any]]
"""("in", layer) -> calls of its attention module, ("out", layer) -> outputs of the layer,
`_PROJECTOR` -> inputs of the projector, (signal, layer) -> its values so far."""
_PROJECTOR = ("in", -1)
_KEYS = ("qkv", "k_proj", "k")
"""What gives the keys, among others."""


AT_FEATURE: dict[str, Callable[[AttentionCall], Tensor]] = {
    "cls_attention": lambda seen: seen.cls_row()[..., None],
    "keys": AttentionCall.keys,
}
"""Signals of the feature layer."""
PER_LAYER: dict[str, Callable[[AttentionCall], Tensor]] = {
    "encoder_attention": lambda seen: seen.received()[..., None],
    **{f"layer_{name}": look for name, look in AT_FEATURE.items()},
}
"""Signals of the layers that a method asks for."""
WHILE_ENCODING = frozenset({*AT_FEATURE, *PER_LAYER, "relevance", "projection"})
"""Signals that are collected during a feature call."""


class TowerHooks:
    """Hooks on the layers of the vision towers that a pipeline needs to know of, and no others."""

    text_tower: TextTower

    def __init__(
        self,
        parts: ModelParts,
        pipeline: Pipeline,
        given: Collection[str],
        collected: frozenset[str],
        recording: During[Record],
    ) -> None:
        """Find the layers.

        Args:
            parts: of the model.
            pipeline: the methods.
            given: the signals among which `Method.needs` may choose.
            collected: those of `WHILE_ENCODING` that the pipeline needs.
            recording: what is noted of a feature call, while one runs.

        Raises:
            UnsupportedModelError: the features come from before the first layer, or layers with
                attention are not found.
            CompositionError: a method asks for a layer that the features do not go through.
        """
        encoder, base = parts.family.encoder, parts.base
        self._encoder, self._base = encoder, base
        self._needs, self._name = collected, pipeline.name
        self._recording = recording
        self._layers = [attention_layers(tower) for tower in parts.towers]
        layers = min(map(len, self._layers))
        depth = encoder.depth(base, layers)
        if self._needs != {"projection"} and not 1 <= depth <= layers:
            raise UnsupportedModelError(
                f"{self._name} needs the attention of a layer of the vision tower, but the "
                f"features of this model come from after layer {depth} of {layers}"
            )
        self._feature = depth - 1
        self._asked = _asked(pipeline, given, encoder.full_attention_layers(base, depth), depth)

    def hook(self, attached: Attachments) -> None:
        """Install them."""
        wanted = {name: [self._feature] for name in self._needs & AT_FEATURE.keys()} | self._asked
        rows = {layer for name in wanted if name.endswith("attention") for layer in wanted[name]}
        for layers in self._layers:
            for number in sorted({layer for found in wanted.values() for layer in found}):
                self._hook_attention(attached, number, layers[number][1], number in rows)
            if "relevance" in self._needs:
                attached.look(layers[self._feature][0], self._leave)
        if "projection" in self._needs:
            projector = self._base.get_submodule(self._encoder.projector)
            attached.before(projector, self._project, kwargs=False)

    def _hook_attention(
        self, attached: Attachments, layer: int, attention: nn.Module, queries: bool
    ) -> None:
        attached.before(attention, functools.partial(self._enter, layer))
        watched = self._encoder.watched and queries
        if watched:
            watch(attached, attention, functools.partial(self._attend, layer))
        for name in _KEYS if watched or not queries else (*_KEYS, "q_proj"):
            projection = getattr(attention, name, None)
            if projection is not None:
                attached.look(projection, functools.partial(self._keep, layer, name))

    def _enter(self, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        record = self._recording.value
        if record is not None:
            hidden = hidden_of(args, kwargs)
            record["in", layer].append(
                AttentionCall(module, hidden, kwargs, self._encoder.cls_place)
            )

    def _attend(self, layer: int, seen: Attended) -> None:
        record = self._recording.value
        if record is not None:
            record["in", layer][-1].attended.append(seen)

    def _keep(self, layer: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        record = self._recording.value
        if record is not None:
            record["in", layer][-1].projected[name] = output.detach()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        record = self._recording.value
        if record is not None:
            hidden = hidden_in(output)
            record["out", self._feature].append(hidden)

    def _project(self, module: nn.Module, args: Any) -> None:
        record = self._recording.value
        if record is not None:
            record[_PROJECTOR].append(args[0])

    def settle(self, record: Record) -> None:
        """Work out the signals of what was recorded so far, and forget its activations."""
        for name, layers in self._asked.items():
            for layer in layers:
                record[name, layer] += [PER_LAYER[name](seen) for seen in record["in", layer]]
        feature = self._feature
        for name in self._needs & AT_FEATURE.keys():
            record[name, feature] += [AT_FEATURE[name](seen) for seen in record["in", feature]]
        if "relevance" in self._needs:
            outputs = record["out", feature]
            record["relevance", feature] += [self.text_tower.look(hidden) for hidden in outputs]
        for what, layer in [*record]:
            if what == "out" or (what == "in" and (what, layer) != _PROJECTOR):
                del record[what, layer]

    def collect(
        self, modality: str, call: Mapping[str, Any], layouts: Sequence[Layout], record: Record
    ) -> list[dict[str, Any]]:
        """The signals of each piece that a feature call encoded.

        Returns:
            Field -> [N, ...], for signals of several layers layer -> [N, ...]; without separators.
            Under `relevance` still [N, C] unit vectors, to be multiplied with that of the text.
        """
        found: list[dict[str, Any]] = [{} for _ in layouts]

        def tokens(name: str, values: list[Tensor]) -> Iterator[tuple[dict[str, Any], Tensor]]:
            pieces = self._encoder.to_tokens(self._base, modality, self._joined(values), call)
            for mine, piece, layout in zip(found, pieces, layouts, strict=True):
                visual = _visual(piece, layout)
                yield mine, visual[:, 0] if name.endswith("attention") else visual

        self.settle(record)
        for name, layers in self._asked.items():
            for layer in layers:
                for piece, values in tokens(name, record[name, layer]):
                    piece.setdefault(name, {})[layer] = values
        for name in sorted(self._needs & {*AT_FEATURE, "relevance"}):
            for piece, values in tokens(name, record[name, self._feature]):
                piece[name] = values
        if "projection" in self._needs:
            entered = self._joined(record[_PROJECTOR])
            probed = projections(self._encoder, self._base, modality, call, entered)
            for piece, projection, layout in zip(found, probed, layouts, strict=True):
                piece["projection"] = only(projection, layout.visual)
        return found

    def _joined(self, calls: list[Tensor]) -> Tensor:
        """Values of all calls of a module; a feature call mostly makes one."""
        if not calls:
            raise unreached(self._name)
        return calls[0] if len(calls) == 1 else torch.cat(calls)


def _asked(
    pipeline: Pipeline, given: Collection[str], whole: Sequence[int], depth: int
) -> dict[str, list[int]]:
    """Signal -> the layers of which the methods want it."""
    asked: dict[str, set[int]] = {}
    for method in pipeline.methods:
        for name in sorted(resolve(method.asks, given)[0] & PER_LAYER.keys()):
            asked.setdefault(name, set()).update(method.encoder_layers(depth, whole))
    for layer in sorted(set().union(*asked.values())):
        if not 0 <= layer < depth:
            raise CompositionError(
                f"{pipeline.name} asks for ViT layer {layer}; the features of this model go "
                f"through layers 0 to {depth - 1}"
            )
    return {name: sorted(layers) for name, layers in asked.items()}


def _visual(values: Tensor, layout: Layout) -> Tensor:
    """[placeholders, C] -> [N, C], without separators."""
    visual = layout.visual
    if visual.all():
        return values
    return values[visual.nonzero()[:, 0].to(values.device)]
