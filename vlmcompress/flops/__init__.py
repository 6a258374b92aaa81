"""FLOPs and KV bytes: exact ones of a whole call, and the conventions that papers count by."""

from vlmcompress.flops.exact import (
    Costs,
    LayerShape,
    Load,
    ModelShape,
    decode_step,
    first_token,
)
from vlmcompress.flops.paper_conventions import DecoderShape, kv_bytes, prefill_flops

__all__ = [
    "Costs",
    "DecoderShape",
    "LayerShape",
    "Load",
    "ModelShape",
    "decode_step",
    "first_token",
    "kv_bytes",
    "prefill_flops",
]
