"""Hooks that shorten the visual sequence of Hugging Face models: one room a concern."""

from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.registry import FAMILIES, family_of

__all__ = ["FAMILIES", "Family", "family_of"]
