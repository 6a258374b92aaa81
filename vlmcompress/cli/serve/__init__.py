"""`vlmcompress serve`."""

from vlmcompress.cli.serve.command import serve

__all__ = ["serve"]
