"""Models and processors by a built-in name, a path or a hub id."""

from vlmcompress.models.loading import load

__all__ = ["load"]
