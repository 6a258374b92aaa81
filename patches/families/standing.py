"""How well each model type is known to work: tested, by structure, or refused and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.registry import FAMILIES, RETRIEVERS
from vlmcompress.patches.families.table import (
    BROKEN,
    CLIPS,
    OUT_OF_SCOPE,
    TESTED,
    UNSCORED,
    row_of,
)
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.version import NEWEST_TRANSFORMERS

State = Literal["tested", "by structure", "refused"]


@dataclass(frozen=True)
class Standing:
    """What is known of a model type."""

    state: State
    reason: str | None = None
    """Why it is not tested, or refused."""


def standing_of(name: str) -> Standing:
    """What is known of a model type on the transformers that is installed."""
    tested = {*TESTED, *RETRIEVERS.names()}
    if name in FAMILIES.names() and name not in tested:
        return Standing("by structure", "its adapter was plugged in by another package")
    if name in OUT_OF_SCOPE:
        return Standing("refused", OUT_OF_SCOPE[name])
    if name not in tested:
        return Standing("by structure", "no test of vlmcompress has run on this model type")
    broken = BROKEN.get((name, transformers.__version__))
    if broken is not None:
        return Standing("by structure", broken)
    if Version(transformers.__version__) > Version(NEWEST_TRANSFORMERS):
        newer = f"transformers {transformers.__version__} is newer than {NEWEST_TRANSFORMERS}"
        return Standing("by structure", f"{newer}, the last one that was tested")
    if name in TESTED - set(FAMILIES.names()) and transformers.__version__ != NEWEST_TRANSFORMERS:
        where = f"on transformers {NEWEST_TRANSFORMERS}, this is {transformers.__version__}"
        return Standing("by structure", f"it was tested {where}")
    return Standing("tested")


@dataclass(frozen=True)
class TypeFacts:
    """What can be said of a model type without a model of it."""

    class_name: str
    stages: tuple[str, ...]
    images: bool
    video: bool
    signals: frozenset[str]
    no_costs: str | None
    """`Family.no_costs`."""


def known_types() -> dict[str, TypeFacts]:
    """Every type with an adapter of its own, and all others that transformers lists."""
    written = {name: _of_family(family) for name, family in FAMILIES.items()}
    listed = sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items())
    return written | {name: _of_type(name, cls) for name, cls in listed if name not in written}


def retriever_types() -> dict[str, TypeFacts]:
    """The types of models that embed pages and answer no questions."""
    return {name: _of_family(family) for name, family in RETRIEVERS.items()}


def _of_family(family: type[Family]) -> TypeFacts:
    signals = frozenset(family.encoder.signals)
    media = family.images, family.video
    return TypeFacts(family.class_name, family.stages, *media, signals, family.no_costs)


def _of_type(name: str, class_name: str) -> TypeFacts:
    if name in OUT_OF_SCOPE:
        return TypeFacts(class_name, (), False, False, frozenset(), OUT_OF_SCOPE[name])
    row = row_of(name)
    signals = (row.like or Encoder()).signals
    if name not in TESTED - UNSCORED:
        signals -= {"question_logits"}
    return TypeFacts(class_name, row.stages, True, name in CLIPS, signals, row.no_costs)
