"""Which methods go together, and where each of them acts."""

from __future__ import annotations

from collections.abc import Sequence

from vlmcompress.errors import CompositionError
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    PixelSelector,
    Resizer,
    TowerDropper,
)
from vlmcompress.methods.contracts.decoder import InDecoder
from vlmcompress.methods.contracts.method import Method, ProjectorMethod, Stage

_CLASSES: dict[Stage, tuple[type[Method], ...]] = {
    "pixels": (Resizer, PixelSelector),
    "encoder": (EncoderMethod, TowerDropper),
    "projector": (ProjectorMethod,),
    "decoder": (InDecoder,),
}
"""In the order in which an image meets them; what a method must be to act at each."""


def by_stage(methods: Sequence[Method]) -> dict[Stage, Method]:
    """Stage -> the method that acts there.

    Raises:
        CompositionError: two methods at one stage, or methods that do not go together.
    """
    names = "+".join(method.name for method in methods)
    at: dict[Stage, Method] = {}
    for method in methods:
        stage = getattr(method, "acts_at", None)  # none where a user's class names no stages
        if stage not in _CLASSES or not isinstance(method, _CLASSES[stage]):
            raise CompositionError(
                f"{names}: {method!r} is no method of one of the stages {', '.join(_CLASSES)}"
            )
        if len(methods) > 1 and not method.takes_budget:
            raise CompositionError(
                f"{names}: {method.name} {method.summary}, so it goes with no other method"
            )
        if stage in at:
            raise CompositionError(
                f"{names}: {at[stage].name} and {method.name} both act at the {stage} stage; one "
                "is possible"
            )
        at[stage] = method
    _check_before_projector(names, at)
    if "decoder" in at and at["decoder"].on_grid and len(methods) > 1:
        raise CompositionError(
            f"{names}: {at['decoder'].name} between decoder layers needs all tokens on their grid, "
            "so it goes with no other method"
        )
    return at


def _check_before_projector(names: str, at: dict[Stage, Method]) -> None:
    """Raise unless at most one method acts before the projector, and leaves what the next needs."""
    if "pixels" in at and "encoder" in at:
        raise CompositionError(
            f"{names}: {at['pixels'].name} acts on pixels and {at['encoder'].name} in the encoder; "
            "one of the two is possible"
        )
    upstream, projector = at.get("pixels", at.get("encoder")), at.get("projector")
    if upstream and projector and projector.on_grid and not isinstance(upstream, Resizer):
        raise CompositionError(
            f"{names}: {projector.name} needs tokens on their grid, and {upstream.name} leaves none"
        )
