"""Published checkpoints in their real geometry and tiny widths, with their processors.

Sizes of pictures, patches, merges and tiles are those of the model cards; so are the classes.
Widths and depths change no count and are cut. The number of tokens of a photograph of 640x480
pixels, and of a clip of 8 such frames, is written out as the papers and cards count it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from processor_folders import KINDS, SPECIAL, Kind, write_folder

TOKEN = {name: number for number, name in enumerate(SPECIAL)}
LLAVA = "<image>", "<video>"
QWEN = KINDS["qwen2_5_vl"].placeholders
"""What stands for a picture, and for a clip, in a chat template."""
VOCABULARY = 64


def text(kind: str, **more: Any) -> dict[str, Any]:
    """A decoder of two layers."""
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        **more,
    }


def tower(kind: str, image: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        "projection_dim": 16,
        **more,
    }


def mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}


@dataclass(frozen=True)
class Published:
    """One checkpoint."""

    cls: str
    kind: Kind
    config: dict[str, Any]
    photo: int
    """Visual tokens of a photograph; separators are none."""
    clip: int | None = None
    """Of a clip; None where the model takes none, or its video processor needs torchvision."""
    separators: int = 0
    """Beside the tokens of the photograph."""


def write_checkpoint(folder: Path, published: Published) -> Path:
    """Processor, configuration and random weights, as a folder of the hub has them."""
    write_folder(folder, published.kind)
    config = getattr(transformers, f"{published.cls}Config")(**published.config)
    torch.manual_seed(0)
    cls = getattr(transformers, f"{published.cls}ForConditionalGeneration")
    cls._from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
