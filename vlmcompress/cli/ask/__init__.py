"""`vlmcompress ask`."""

from vlmcompress.cli.ask.command import ask

__all__ = ["ask"]
