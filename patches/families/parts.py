"""A model of a supported family, taken apart: asked of its adapter once, not by everybody."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.registry import family_of


@dataclass(frozen=True, eq=False)
class ModelParts:
    """Where everything is in one model."""

    model: nn.Module
    family: Family
    base: nn.Module
    """Vision towers, projector and decoder; no LM head."""
    lm: nn.Module
    """The decoder stack."""
    layers: nn.ModuleList
    """Its layers in order."""
    towers: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: nn.Module, family: Family | None = None) -> ModelParts:
        """The parts of a model.

        Args:
            model: as users hold it.
            family: its adapter, where that is known already.

        Raises:
            UnsupportedModelError: no family serves it.
        """
        family = family_of(model) if family is None else family
        base = family.base(model)
        lm, layers = family.language_model(base), family.layers(base)
        return cls(model, family, base, lm, layers, family.towers(base))
