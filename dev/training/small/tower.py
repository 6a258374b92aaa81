"""Stage 1: the vision tower, from that of tiny-llava, first on quarters of posters, then on whole.

A quarter costs a quarter, and each has what a picture of tiny-llava has: three by three cells.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from dev.training.llava.data import IGNORED
from dev.training.llava.tower import FEATURE_LAYER, WIDTH, as_input, patch_losses, vision_config
from dev.training.optim import Trainer, TrainingRun, describe, full_weights, save_state
from dev.training.small.data import (
    COLOR,
    EXTREME,
    FIELDS,
    HEIGHT,
    KIND,
    MIDDLE,
    ORDER,
    OWNER,
    TAGS,
    Posters,
    label_poster,
    tags_of,
)
from dev.training.small.model import start_tower
from vlmcompress.eval.worlds.posters.draw import SIDE, render_poster
from vlmcompress.eval.worlds.posters.poster import CELL_PATCHES, IMAGE_SIZE, make_poster
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS, PATCH_SIZE

QUARTER = SIDE // 2
_QUARTERS = 0.47
_BATCH = 32
_HELD_OUT = 48
_LOG_EVERY = 50
_BAR = len(FIELDS["kind"])
_CLASSES = [len(words) + 1 for words in FIELDS.values()]


class LabelledTower(nn.Module):
    """The tower with linear heads, which are thrown away after training."""

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        """Build a tower from weights of `start_tower`."""
        super().__init__()
        self.tower = CLIPVisionModel(vision_config(IMAGE_SIZE))
        self.tower.load_state_dict(start)
        self.patch_head = nn.Linear(WIDTH, sum(_CLASSES))
        self.tag_head = nn.Linear(WIDTH, TAGS)

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Look at parts of posters.

        Args:
            pixels: [B, 3, H, W].
            patches: [B, N], which patches of the poster these are.

        Returns:
            Patch logits, [B, N, all classes], and tag logits, [B, TAGS].
        """
        embeddings = self.tower.embeddings
        seen = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        start = embeddings.class_embedding.expand(len(seen), 1, -1)
        places = F.pad(patches + 1, (1, 0))
        hidden = torch.cat([start, seen], dim=1) + embeddings.position_embedding(places)
        hidden = self.tower.pre_layrnorm(hidden)
        layers = self.tower.encoder.layers
        for layer in layers[: FEATURE_LAYER + 1]:
            hidden = layer(hidden, None)
        features = hidden[:, 1:]
        for layer in layers[FEATURE_LAYER + 1 :]:
            hidden = layer(hidden, None)
        shown = self.tower.post_layernorm(hidden[:, 0])
        return self.patch_head(features).float(), self.tag_head(shown).float()


def cut_quarters(
    posters: Posters, rows: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.int64]]:
    """A quarter of each poster, along the edges of cells; every second chart is met whole.

    Returns:
        Pixels, [B, 96, 96, 3], labels, [B, ROWS, 144], and patches of the poster, [B, 144]. What
        cannot be known of items and charts that are cut is not to be learnt.
    """
    pixels, labels, patches = [], [], []
    for row in rows:
        whole = posters.labels[row]
        top, left = rng.integers(0, SIDE // CELL_PATCHES // 2 + 1, size=2) * CELL_PATCHES
        bars = np.argwhere(whole[KIND] == _BAR)
        if len(bars) and rng.random() < 0.5:
            top, left = (bars.max(0)[0] // CELL_PATCHES - 2, bars.min(0)[1] // CELL_PATCHES)
            top, left = top * CELL_PATCHES, left * CELL_PATCHES
        part = whole[:, top : top + QUARTER, left : left + QUARTER].reshape(len(whole), -1).copy()
        _forget_cut(part, len(bars))
        labels.append(part)
        y, x = top * PATCH_SIZE, left * PATCH_SIZE
        extent = QUARTER * PATCH_SIZE
        pixels.append(posters.pixels[row, y : y + extent, x : x + extent])
        grid = np.arange(top, top + QUARTER)[:, None] * SIDE + np.arange(left, left + QUARTER)
        patches.append(grid.ravel())
    return np.stack(pixels), np.stack(labels), np.stack(patches)


def _forget_cut(labels: NDArray[np.int8], bar_patches: int) -> None:
    """Unlabel what is cut, in place: items whose middle is elsewhere, bars unless all are there."""
    bars = labels[KIND] == _BAR
    there = labels[OWNER][labels[MIDDLE] == 1]
    cut = (labels[OWNER] > 0) & ~bars & ~np.isin(labels[OWNER], there)
    for field in (KIND, COLOR, ORDER):
        labels[field][cut] = IGNORED
    if bars.sum() < bar_patches:
        for field in (HEIGHT, EXTREME):
            labels[field][bars] = IGNORED


def all_patches(count: int) -> Tensor:
    """Numbers of the patches of whole posters, [count, 576]."""
    return torch.arange(SIDE * SIDE).expand(count, -1)


@torch.no_grad()
def _measure(model: LabelledTower, pixels: Tensor, labels: NDArray[np.int8]) -> str:
    """Over whole held-out posters: how much of what is there, and of what is not, is seen."""
    outs = [model(part, all_patches(len(part))) for part in torch.split(pixels, 16)]
    logits = torch.cat([patches for patches, _ in outs])
    figures = []
    for field, scores in enumerate(torch.split(logits, _CLASSES, dim=-1)):
        wanted = torch.from_numpy(labels[:, field]).long()
        right = scores.argmax(dim=-1) == wanted
        figures.append((list(FIELDS)[field], right[wanted > 0].float().mean().item()))
        figures.append(("none", right[wanted == 0].float().mean().item()))
    found = torch.cat([scores for _, scores in outs]) > 0
    wanted = torch.from_numpy(tags_of(labels)).bool()
    figures.append(("tags", (2 * (found & wanted).sum() / (found.sum() + wanted.sum())).item()))
    return describe(figures)


def _held_out() -> tuple[Tensor, NDArray[np.int8]]:
    pixels, labels = [], []
    for seed in HELD_OUT_SEEDS[-_HELD_OUT:]:
        poster = make_poster(seed)
        picture, cover = render_poster(poster)
        pixels.append(picture)
        labels.append(label_poster(poster, cover).reshape(-1, SIDE * SIDE))
    return as_input(np.stack(pixels)), np.stack(labels)


def train_tower(tiny: dict[str, Tensor], posters: Posters, run: TrainingRun) -> dict[str, Any]:
    """Train the tower, or continue.

    Args:
        tiny: Weights of tiny-llava.
        posters: To train on.
        run: Where and how long.

    Returns:
        The float32 weights of `CLIPVisionModel`.
    """
    torch.manual_seed(run.seed)
    model = LabelledTower(start_tower(tiny, SIDE))
    trainer = Trainer(model, run.minutes * 60, muon_lr=2e-3, adam_lr=2e-3)
    checkpoint = run.folder / "small-tower.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    held_out = _held_out()
    rng = np.random.default_rng([run.seed, run.rank, trainer.steps])
    while trainer.progress < 1:
        whole = trainer.progress > _QUARTERS
        # Twice as fast with 577 tokens, half as fast with 145; weights are the same for both.
        model.tower.set_attn_implementation("sdpa" if whole else "eager")
        trainer.step(_loss(model, posters, rng, whole))
        if trainer.steps % _LOG_EVERY and trainer.progress < 1:
            continue
        if run.rank == 0:
            save_state(checkpoint, trainer.state())
            figures = _measure(model, *held_out)
            run.log(f"small-tower {trainer.steps} {trainer.spent:.0f}s {figures}")
    return {
        name.removeprefix("tower."): value
        for name, value in full_weights(trainer).items()
        if name.startswith("tower.")
    }


def _loss(model: LabelledTower, posters: Posters, rng: np.random.Generator, whole: bool) -> Tensor:
    size = _BATCH // 4 if whole else _BATCH
    rows = np.sort(rng.choice(len(posters), size=size, replace=False))
    if whole:
        pixels, patches = posters.pixels[rows], all_patches(size)
        labels = posters.labels[rows].reshape(size, -1, SIDE * SIDE)
    else:
        pixels, labels, numbers = cut_quarters(posters, rows, rng)
        patches = torch.from_numpy(numbers)
    logits, scores = model(as_input(pixels), patches)
    losses = patch_losses(logits, torch.from_numpy(labels), FIELDS)
    shown = F.binary_cross_entropy_with_logits(scores, torch.from_numpy(tags_of(labels))) * 4
    return sum(losses, shown)
