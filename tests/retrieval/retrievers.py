"""Tiny retrievers with random weights, and prompts of one page each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from vlmcompress.report.report import ImageReport

IMAGE = 99
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAUSAL = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
    "vision_use_head": False,
}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def _qwen(kind: str, **vision: Any) -> dict[str, Any]:
    tower = {"depth": 3, "patch_size": 4, "num_heads": 4, "hidden_size": 32} | vision
    return {
        "model_type": kind,
        "image_token_id": IMAGE,
        "video_token_id": 98,
        "vision_start_token_id": 97,
        "vision_end_token_id": 96,
        "text_config": CAUSAL | {"rope_parameters": _MROPE},
        "vision_config": tower,
    }


_VLMS = {
    "colqwen2": _qwen("qwen2_vl", embed_dim=32, mlp_ratio=2, hidden_size=32),
    "colqwen2.5": _qwen(
        "qwen2_5_vl",
        intermediate_size=64,
        out_hidden_size=32,
        window_size=16,
        fullatt_block_indexes=[2],
    ),
    "colpali": {
        "model_type": "paligemma",
        "image_token_id": IMAGE,
        "projection_dim": 32,
        "text_config": CAUSAL | {"model_type": "gemma"},
        "vision_config": SIGLIP,
    },
    "colmodernvbert": {
        "model_type": "modernvbert",
        "image_token_id": IMAGE,
        "pixel_shuffle_factor": 2,
        "text_config": TEXT
        | {
            "model_type": "modernbert",
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "max_position_embeddings": 256,
        },
        "vision_config": SIGLIP,
    },
}
NAMES = tuple(_VLMS)
SOME = [
    name if name in ("colqwen2.5", "colmodernvbert") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
"""The same; the two that share least are left for the quick tests."""
_CLASSES = {"colpali": "ColPali", "colmodernvbert": "ColModernVBert"}


@dataclass(frozen=True, eq=False)
class Retriever:
    """A model, and how a page of some size is given to it."""

    name: str
    model: Any

    def page(self, seed: int, rows: int, columns: int, words: int = 5) -> dict[str, Tensor]:
        """Inputs of one page of `rows` x `columns` tokens; the others have 6x6, or tiles of 3x3."""
        g = torch.Generator().manual_seed(seed)
        text = torch.randint(3, 90, (words,), generator=g).tolist()
        visual = [IMAGE] * self.tokens(rows, columns)
        media: dict[str, Tensor]
        if self.name.startswith("colqwen2"):
            h, w = 2 * rows, 2 * columns
            media = {
                "pixel_values": torch.randn(1, h * w, 3 * 2 * 16, generator=g),
                "image_grid_thw": torch.tensor([[1, h, w]]),
            }
        elif self.name == "colpali":
            media = {"pixel_values": torch.randn(1, 3, 24, 24, generator=g)}
        else:
            media = {"pixel_values": torch.randn(1, 3, 3, 24, 24, generator=g)}
            tile = [IMAGE] * 9
            visual = [91, *tile, 92, *tile, 93, *tile]
        ids = torch.tensor([[*text[:2], *visual, *text[2:]]])
        if self.name == "colpali":  # its processor does so: a page is prefix, all sees all
            media["token_type_ids"] = torch.zeros_like(ids)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}

    def tokens(self, rows: int, columns: int) -> int:
        """Visual tokens of such a page."""
        fixed = {"colpali": 36, "colmodernvbert": 27}
        return fixed.get(self.name, rows * columns)

    def vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the model gives, [B, L, d]."""
        with torch.no_grad():
            found: Tensor = self.model(**inputs).embeddings
        return found


def batch(pages: list[dict[str, Tensor]], left: bool = True) -> dict[str, Tensor]:
    """Pages side by side, padded."""
    size = max(page["input_ids"].shape[1] for page in pages)
    out: dict[str, list[Tensor]] = {}
    for page in pages:
        missing = size - page["input_ids"].shape[1]
        pad = (missing, 0) if left else (0, missing)
        for name, value in page.items():
            token = value.shape == page["input_ids"].shape
            padded = torch.nn.functional.pad(value, pad) if token else value
            out.setdefault(name, []).append(padded)
    patches = max(value.shape[1] for value in out["pixel_values"])
    if out["pixel_values"][0].dim() == 3:  # ColQwen2Processor pads them
        out["pixel_values"] = [
            torch.nn.functional.pad(v, (0, 0, 0, patches - v.shape[1])) for v in out["pixel_values"]
        ]
    return {name: torch.cat(values) for name, values in out.items()}


def entering(inputs: dict[str, Tensor], image: ImageReport, layer: int, row: int = 0) -> Tensor:
    """[L] bool: the tokens of a prompt that enter a layer."""
    kept = image.kept
    for cut in sorted(image.cuts):
        kept = image.cuts[cut] if cut <= layer else kept
    keep = inputs["attention_mask"][row].bool()
    visual = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
    keep[visual] = False
    keep[visual[kept]] = True
    return keep


@lru_cache
def retriever(name: str) -> Retriever:
    """A model of one of `NAMES` in float32."""
    torch.manual_seed(0)
    kind = _CLASSES.get(name, "ColQwen2")
    settings = dict(_VLMS[name])
    inner = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    config = getattr(transformers, f"{kind}Config")(vlm_config=inner, embedding_dim=16)
    model = getattr(transformers, f"{kind}ForRetrieval")(config)
    g = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3, generator=g)
        else:
            parameter.data.add_(torch.randn(parameter.shape, generator=g), alpha=0.2)
    return Retriever(name, model.eval())
