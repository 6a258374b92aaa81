"""Training-free visual token reduction for Hugging Face vision-language models.

Importing the package imports nothing heavy and changes nothing: each name below is loaded from its
module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vlmcompress.version import __version__

if TYPE_CHECKING:
    from vlmcompress.api import Compression, compress, list_models
    from vlmcompress.asking.answer import Answer
    from vlmcompress.asking.ask import ask, compare
    from vlmcompress.asking.chat import Chat
    from vlmcompress.asking.comparison import Comparison
    from vlmcompress.budget.budget import Budget
    from vlmcompress.errors import VLMCompressError
    from vlmcompress.flops.paper_conventions import DecoderShape, kv_bytes, prefill_flops
    from vlmcompress.laws.check import check
    from vlmcompress.laws.report import CheckReport
    from vlmcompress.media.video import Video, read_video
    from vlmcompress.methods import get_method, list_methods, register_method
    from vlmcompress.models.loading import load
    from vlmcompress.patches.signals.text_tower import LongText
    from vlmcompress.report.report import Report
    from vlmcompress.retrieval.embed import embed
    from vlmcompress.retrieval.search import search
    from vlmcompress.short_prompt import ShortPrompt, shorten
    from vlmcompress.tokens import Grid, Reduction, VisualTokens
    from vlmcompress.tuned import Tuned
    from vlmcompress.tuning.tune import tune


__all__ = [
    "Answer",
    "Budget",
    "Chat",
    "CheckReport",
    "Comparison",
    "Compression",
    "DecoderShape",
    "Grid",
    "LongText",
    "Reduction",
    "Report",
    "ShortPrompt",
    "Tuned",
    "VLMCompressError",
    "Video",
    "VisualTokens",
    "__version__",
    "ask",
    "check",
    "compare",
    "compress",
    "embed",
    "get_method",
    "kv_bytes",
    "list_methods",
    "list_models",
    "load",
    "prefill_flops",
    "read_video",
    "register_method",
    "search",
    "shorten",
    "tune",
]

_HOME = {
    "Answer": "asking.answer",
    "Budget": "budget.budget",
    "Chat": "asking.chat",
    "CheckReport": "laws.report",
    "Comparison": "asking.comparison",
    "Compression": "api",
    "DecoderShape": "flops.paper_conventions",
    "Grid": "tokens",
    "LongText": "patches.signals.text_tower",
    "Reduction": "tokens",
    "Report": "report.report",
    "ShortPrompt": "short_prompt",
    "Tuned": "tuned",
    "VLMCompressError": "errors",
    "Video": "media.video",
    "VisualTokens": "tokens",
    "ask": "asking.ask",
    "check": "laws.check",
    "compare": "asking.ask",
    "compress": "api",
    "embed": "retrieval.embed",
    "get_method": "methods",
    "kv_bytes": "flops.paper_conventions",
    "list_methods": "methods",
    "list_models": "api",
    "load": "models.loading",
    "prefill_flops": "flops.paper_conventions",
    "read_video": "media.video",
    "register_method": "methods",
    "search": "retrieval.search",
    "shorten": "short_prompt",
    "tune": "tuning.tune",
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
