"""tiny-colqwen as it ships: an ordinary folder of a trained model that finds pages."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.colqwen2 import ColQwen2ForRetrieval

import vlmcompress
from dev.training.qwen.model import IDS
from dev.training.retrieval.model import ProcessorFiles, make_config
from dev.training.retrieval.train import Retriever, as_patches, contrast
from vlmcompress.eval.worlds.pages import draw_page, make_page, render_page
from vlmcompress.models.names import ASSETS

FOLDER = ASSETS / "tiny_colqwen"


def test_it_loads_every_weight_and_training_wrote_down_which():
    _, info = ColQwen2ForRetrieval.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values())
    told = Path(__file__).parents[3] / "dev" / "training" / "retrieval" / "training.json"
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(told.read_text())["weights_sha256"] == digest
    assert (FOLDER / "model.safetensors").stat().st_size < 6e6


def test_the_files_beside_the_weights_are_what_the_code_writes(tmp_path):
    model, processor = vlmcompress.load("tiny-colqwen", device="cpu")
    (tmp_path / "config.json").write_text("")
    ProcessorFiles().save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    assert model.dtype == torch.float32
    assert processor.tokenizer.get_vocab() == IDS
    ours, shipped = make_config(), model.config
    assert ours.embedding_dim == shipped.embedding_dim
    for part in ("text_config", "vision_config"):
        pair = [getattr(config.vlm_config, part).to_dict() for config in (ours, shipped)]
        told, found = ({k: v for k, v in one.items() if k != "dtype"} for one in pair)
        assert told == found
    assert (
        "/" not in json.loads((FOLDER / "config.json").read_text())["vlm_config"]["_name_or_path"]
    )


def test_training_sees_what_the_processor_gives():
    _, processor = vlmcompress.load("tiny-colqwen", device="cpu")
    pages = [make_page(seed) for seed in (1, 2)]
    given = processor.process_images(images=[draw_page(page) for page in pages])
    ours = as_patches(np.stack([render_page(page) for page in pages])).float()
    assert (given["pixel_values"].flatten(0, 1) - ours).abs().max() < 0.01
    text = processor.process_queries(text=["red star", "blue cross sign 7"])
    retriever = Retriever()
    vectors, valid = retriever.queries(["red star", "blue cross sign 7"])
    assert torch.equal(valid.long(), text["attention_mask"])
    with torch.no_grad():
        again = retriever.colqwen(**text).embeddings
    assert torch.allclose(vectors, again, atol=1e-5)


def test_pages_that_are_relevant_by_chance_are_no_negatives():
    scores = torch.tensor([[1.0, 9.0], [0.0, 1.0]])
    alone = contrast(scores, torch.eye(2, dtype=torch.bool))
    by_chance = contrast(scores, torch.tensor([[True, True], [False, True]]))
    assert by_chance.item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-5)
    assert alone > by_chance + 4
