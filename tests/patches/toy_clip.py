"""A CLIP model with random weights."""

from __future__ import annotations

from typing import Any

import torch
from subject_models import CLIP
from transformers import CLIPConfig, CLIPModel


def random_clip(width: int = 32, positions: int = 8) -> Any:
    """CLIP for the towers of the random models."""
    torch.manual_seed(1)
    text = {"vocab_size": 160, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": positions, "eos_token_id": 2}
    vision = CLIP | {"hidden_size": width}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
