"""`vlmcompress profile`."""

from vlmcompress.cli.profile.command import profile

__all__ = ["profile"]
