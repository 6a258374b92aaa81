"""Measured time per stage of a call, of the bare model beside methods."""

from vlmcompress.profiler.measure import profile

__all__ = ["profile"]
