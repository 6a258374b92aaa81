"""Which signals a model gives, and which of them mean something in a pipeline."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import CompositionError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.contracts.before_projector import Resizer, TowerDropper
from vlmcompress.methods.contracts.method import resolve
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.signals.projector import parts_of
from vlmcompress.patches.signals.question_logits import SIGNAL
from vlmcompress.patches.signals.tower_hooks import PER_LAYER

_ANYWHERE = frozenset({"text", "vocabulary", SIGNAL})
"""Signals that do not come from the vision tower."""


def given_by(family: Family, base: nn.Module) -> frozenset[str]:
    """The signals that a model gives, whatever the text tower."""
    encoder = family.encoder
    given = encoder.gives(base)
    if "projection" in given and parts_of(base.get_submodule(encoder.projector)) is None:
        given -= {"projection"}
    if family.no_scores is not None:
        given -= {SIGNAL}
    return given if not vocabulary_of(base).is_meta else given - {"vocabulary"}


def vocabulary_of(base: Any) -> Tensor:
    """[V, D] as stored; the embeddings of Gemma 3 are a multiple of it."""
    weight: Tensor = base.get_input_embeddings().weight
    return weight


def defined(pipeline: Pipeline, parts: ModelParts, given: frozenset[str]) -> frozenset[str]:
    """The signals of a model that mean something behind the upstream method of a pipeline.

    A smaller picture has all of them. Where patches are merged or left out inside the tower, what
    its layers attend to is no longer about the tokens of the image; layers before one drops are.

    Args:
        pipeline: the methods.
        parts: of the model.
        given: the signals that it gives.

    Raises:
        CompositionError: a method needs another one.
    """
    upstream = pipeline.upstream
    if upstream is None or isinstance(upstream, Resizer):
        return given
    known = given & _ANYWHERE
    if isinstance(upstream, TowerDropper):
        if not upstream.shortens:
            return given
        known |= given & PER_LAYER.keys()
        _check_layers(pipeline, upstream, parts, known)
    for method in pipeline.methods:
        _, missing = resolve(method.asks, known)
        if missing and not resolve(method.asks, given)[1]:
            raise CompositionError(
                f"{method.name} needs {', '.join(missing)}, which is not defined behind "
                f"{upstream.name}"
            )
    return known


def _check_layers(
    pipeline: Pipeline, upstream: TowerDropper, parts: ModelParts, known: frozenset[str]
) -> None:
    """Raise where a method asks for a layer of the tower that does not see the whole image."""
    encoder, base = parts.family.encoder, parts.base
    depth = encoder.depth(base, min(len(attention_layers(tower)) for tower in parts.towers))
    first, whole = upstream.before(depth), encoder.full_attention_layers(base, depth)
    for method in pipeline.methods:
        if resolve(method.asks, known)[0] & PER_LAYER.keys():
            late = [layer for layer in method.encoder_layers(depth, whole) if layer >= first]
            if late:
                raise CompositionError(
                    f"{method.name} looks at layer {max(late)} of the vision tower, which no "
                    f"longer sees the whole image where {upstream.name} drops before layer {first}"
                )
