"""Training-free visual token reduction for Hugging Face vision-language models.

Importing the package imports nothing heavy and changes nothing: each name below is loaded from its
module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmcompress.api import Compression, compress, list_models
    from vlmcompress.budget import Budget
    from vlmcompress.errors import VLMCompressError
    from vlmcompress.flops import DecoderShape, kv_bytes, prefill_flops
    from vlmcompress.loading import load
    from vlmcompress.methods import get_method, list_methods, register_method
    from vlmcompress.patches.text_tower import LongText
    from vlmcompress.report import Report
    from vlmcompress.tokens import Grid, Reduction, VisualTokens
    from vlmcompress.video import Video, read_video

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Compression",
    "DecoderShape",
    "Grid",
    "LongText",
    "Reduction",
    "Report",
    "VLMCompressError",
    "Video",
    "VisualTokens",
    "__version__",
    "compress",
    "get_method",
    "kv_bytes",
    "list_methods",
    "list_models",
    "load",
    "prefill_flops",
    "read_video",
    "register_method",
]

_HOME = {
    "Budget": "budget",
    "Compression": "api",
    "DecoderShape": "flops",
    "Grid": "tokens",
    "LongText": "patches.text_tower",
    "Reduction": "tokens",
    "Report": "report",
    "VLMCompressError": "errors",
    "Video": "video",
    "VisualTokens": "tokens",
    "compress": "api",
    "get_method": "methods",
    "kv_bytes": "flops",
    "list_methods": "methods",
    "list_models": "api",
    "load": "loading",
    "prefill_flops": "flops",
    "read_video": "video",
    "register_method": "methods",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
