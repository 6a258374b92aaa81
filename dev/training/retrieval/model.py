"""The tiny page retriever: a ColQwen2 around the tower and the first layers of tiny-qwen."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, ColQwen2Config
from transformers.models.colqwen2 import ColQwen2ForRetrieval

from dev.training.llava.model import replace_folder
from dev.training.qwen.model import SPECIAL, make_tokenizer
from vlmcompress.eval.worlds.pages import HEIGHT, WIDTH
from vlmcompress.models.names import ASSETS

LAYERS = 4
"""Of the decoder that tiny-qwen has; the later ones find answers, which nobody asks for here."""
DIM = 64
"""Of a vector of a page or query."""
PAGE_PROMPT = f"{SPECIAL['vision_start']}{SPECIAL['image']}{SPECIAL['vision_end']}"
QUERY_PREFIX = "picture : "
BACKBONE = ASSETS / "tiny_qwen"


def make_config() -> ColQwen2Config:
    """A Qwen2.5-VL of `LAYERS` layers, and a projection to `DIM`."""
    backbone: Any = AutoConfig.from_pretrained(BACKBONE)
    backbone._name_or_path = ""  # it would be written down
    text = backbone.text_config
    text.num_hidden_layers, text.layer_types = LAYERS, text.layer_types[:LAYERS]
    return ColQwen2Config(vlm_config=backbone, embedding_dim=DIM)


def make_model() -> ColQwen2ForRetrieval:
    """The retriever with the weights of tiny-qwen and a new projection."""
    model = ColQwen2ForRetrieval(make_config())
    source = AutoModelForImageTextToText.from_pretrained(BACKBONE).model.state_dict()
    model.vlm.load_state_dict({name: source[name] for name in model.vlm.state_dict()})
    with torch.no_grad():
        model.embedding_proj_layer.bias.zero_()
    return model


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the model folder, weights in float16, to be loaded in float32.

    Args:
        weights: float32 state of `ColQwen2ForRetrieval`.
        folder: Where it goes; files of the same names are replaced.
    """
    model = ColQwen2ForRetrieval(make_config())
    model.load_state_dict(weights)
    replace_folder(folder, model.half(), make_tokenizer(), ProcessorFiles())


class ProcessorFiles:
    """The files beside model and tokenizer that make `ColQwen2Processor`, and the dtype."""

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings of the processor: those of tiny-qwen, for pages."""
        settings = json.loads((BACKBONE / "preprocessor_config.json").read_text())
        pixels = HEIGHT * WIDTH
        settings |= {
            "processor_class": "ColQwen2Processor",
            "size": {"shortest_edge": pixels, "longest_edge": pixels},
        }
        processor = {
            "processor_class": "ColQwen2Processor",
            "visual_prompt_prefix": PAGE_PROMPT,
            "query_prefix": QUERY_PREFIX,
        }
        for name, content in {
            "preprocessor_config.json": settings,
            "processor_config.json": processor,
        }.items():
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
