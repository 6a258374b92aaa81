"""Trains the built-in page retriever on drawn pages.

    python -m dev.training.retrieval.train --work /tmp/pages --out vlmcompress/assets/tiny_colqwen

The tower stays as it is in tiny-qwen, so its features are computed once; the decoder layers and the
projection learn that a query scores highest (MaxSim) with a page that has what it names. Both
directions of the contrast count, and pages that are relevant by chance are no negatives. Continues
from its checkpoint in the work folder. One CPU core needs 40 minutes. The schedule follows the
clock, so two runs never give the same bits.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.colqwen2 import ColQwen2ForRetrieval

from dev.training.optim import Trainer, full_weights, save_state
from dev.training.qwen.data import MERGE
from dev.training.qwen.model import IDS, SPECIAL, make_tokenizer
from dev.training.retrieval.model import QUERY_PREFIX, export, make_model
from vlmcompress.eval.worlds.pages import (
    HEIGHT,
    WIDTH,
    Page,
    Query,
    ask_page,
    make_page,
    render_page,
)
from vlmcompress.eval.worlds.scene import PATCH_SIZE, TRAIN_SEEDS

_BATCH = 48
_EXAM = 256
_LOG_EVERY = 50
_NAMES = (1, 4)
_SUFFIX = SPECIAL["pad"] * 10
"""What ColQwen2Processor puts behind a query."""


class Retriever(nn.Module):
    """The model on features of the tower, with the sharpness of its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.colqwen = make_model()
        self.colqwen.vlm.visual.requires_grad_(False)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.tokenizer = make_tokenizer()
        self._around = [IDS[SPECIAL[name]] for name in ("vision_start", "vision_end")]

    def pages(self, features: Tensor) -> Tensor:
        """Vectors of pages, [B, N + 2, DIM], from features [B, N, D]."""
        words = self.colqwen.vlm.get_input_embeddings()(torch.tensor(self._around))
        first, last = words[:, None, None].expand(-1, len(features), 1, -1)
        return self._embed(torch.cat([first, features, last], dim=1), None)

    def queries(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors of queries, [B, T, DIM], and which of them are no padding, [B, T] bool."""
        asked = self.tokenizer(
            [f"{QUERY_PREFIX}{text}{_SUFFIX}\n" for text in texts],
            padding="longest",
            return_tensors="pt",
        )
        words = self.colqwen.vlm.get_input_embeddings()(asked.input_ids)
        return self._embed(words, asked.attention_mask), asked.attention_mask.bool()

    def _embed(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        vectors: Tensor = self.colqwen(inputs_embeds=embeds, attention_mask=mask).embeddings
        return vectors.float()

    def scores(self, queries: tuple[Tensor, Tensor], pages: Tensor) -> Tensor:
        """Mean MaxSim of each query and page, [Q, P]."""
        vectors, valid = queries
        best = torch.einsum("qtd,pnd->qptn", vectors, pages).amax(-1)
        return (best * valid[:, None]).sum(-1) / valid.sum(-1, keepdim=True)


def contrast(scores: Tensor, relevant: Tensor) -> Tensor:
    """Cross entropy of each query's own page, and of each page's own query, [B, B] each."""
    others = relevant & ~torch.eye(len(scores), dtype=torch.bool)
    scores = scores.masked_fill(others, float("-inf"))
    own = torch.arange(len(scores))
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


@torch.no_grad()
def tower_features(model: ColQwen2ForRetrieval, pages: Sequence[Page]) -> Tensor:
    """[P, N, D] bfloat16, of the tower as it is."""
    grid = torch.tensor([[1, HEIGHT // PATCH_SIZE, WIDTH // PATCH_SIZE]])
    found = []
    for start in range(0, len(pages), 16):
        some = np.stack([render_page(page) for page in pages[start : start + 16]])
        output = model.vlm.visual(as_patches(some), grid_thw=grid.expand(len(some), -1))
        found.append(output.pooler_output.reshape(len(some), -1, output.pooler_output.shape[-1]))
    return torch.cat(found).bfloat16()


def as_patches(pages: np.ndarray) -> Tensor:
    """Cut pages, [B, 160, 128, 3] uint8, as the image processor does, [B * patches, 384]."""
    rows, columns = HEIGHT // PATCH_SIZE // MERGE, WIDTH // PATCH_SIZE // MERGE
    cut = torch.from_numpy(pages).reshape(
        -1, rows, MERGE, PATCH_SIZE, columns, MERGE, PATCH_SIZE, 3
    )
    cut = cut.permute(0, 1, 4, 2, 5, 7, 3, 6)[..., None, :, :]
    cut = cut.expand(*cut.shape[:6], 2, PATCH_SIZE, PATCH_SIZE)
    return cut.reshape(-1, 3 * 2 * PATCH_SIZE**2).to(torch.bfloat16) / 127.5 - 1.0


def cached_features(pages: Sequence[Page], path: Path) -> Tensor:
    """`tower_features` of tiny-qwen from a file, which is made where it is missing."""
    if not path.exists():
        save_state(path, {"features": tower_features(make_model().bfloat16(), pages)})
    features: Tensor = torch.load(path)["features"]
    return features


def relevance(queries: Sequence[Query], pages: Sequence[Page]) -> Tensor:
    """Which page has all that a query names, [Q, P] bool."""
    return torch.tensor([[query.relevant(page) for page in pages] for query in queries])


@torch.no_grad()
def measure(model: Retriever, features: Tensor, pages: Sequence[Page]) -> float:
    """Share of queries whose first page is relevant, among pages that are not learnt from."""
    rng = np.random.default_rng(9)
    queries = [ask_page(page, rng, 3) for page in pages]
    asked = model.queries([query.text for query in queries])
    scores = model.scores(asked, model.pages(features))
    right = relevance(queries, pages)[torch.arange(len(pages)), scores.argmax(-1)]
    return float(right.float().mean())


def train(
    arguments: argparse.Namespace, log: Callable[[str], None], publish: Callable[..., None]
) -> None:
    """Train, or continue; `publish` takes the weights now and then."""
    torch.manual_seed(arguments.seed)
    pages = [make_page(seed) for seed in TRAIN_SEEDS[: arguments.pages + _EXAM]]
    features = cached_features(pages, arguments.work / "features.pt")
    model = Retriever()
    trainer = Trainer(model, arguments.minutes * 60, muon_lr=2e-3, adam_lr=1e-3)
    checkpoint = arguments.work / "retriever.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    rng = np.random.default_rng([arguments.seed, 8, trainer.steps])
    while trainer.progress < 1:
        batch = rng.choice(arguments.pages, size=_BATCH, replace=False)
        shown = [pages[index] for index in batch]
        counts = rng.integers(_NAMES[0], _NAMES[1] + 1, size=_BATCH).tolist()
        queries = [ask_page(page, rng, count) for page, count in zip(shown, counts, strict=True)]
        scores = model.scores(
            model.queries([query.text for query in queries]), model.pages(features[batch])
        )
        loss = contrast(scores * model.sharpness.float().exp() * 4, relevance(queries, shown))
        trainer.step(loss)
        if trainer.steps % _LOG_EVERY == 0 or trainer.progress >= 1:
            right = measure(model, features[-_EXAM:], pages[-_EXAM:])
            log(f"{trainer.steps} {trainer.spent:.0f}s loss {loss.item():.3f} first {right:.3f}")
            save_state(checkpoint, trainer.state())
            publish(retriever_weights(trainer))


def retriever_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Float32 state of `ColQwen2ForRetrieval`."""
    prefix = "colqwen."
    return {
        name.removeprefix(prefix): value
        for name, value in full_weights(trainer).items()
        if name.startswith(prefix)
    }


def main() -> None:
    """Train and write the model folder."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.training.retrieval.train", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--pages", type=int, default=6_000, help="pages to train on")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        with (arguments.work / "train.log").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    train(arguments, log, lambda weights: export(weights, arguments.out))


if __name__ == "__main__":
    main()
