"""The text tower that matches the vision tower of small-llava, from that of tiny-clip.

What the vision tower sees of some posters is kept in memory; the rest is as for tiny-clip.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from dev.training.llava.clip_text_tower import (
    Matcher,
    clip_tokens,
    clip_weights,
    make_clip_config,
)
from dev.training.llava.tower import as_input
from dev.training.optim import Trainer, TrainingRun, describe, save_state
from dev.training.small.data import OWNER, PATCHES, Posters
from dev.training.small.model import IDS
from vlmcompress.eval.worlds.posters.draw import SIDE, render_poster
from vlmcompress.eval.worlds.posters.poster import IMAGE_SIZE, Poster, make_poster
from vlmcompress.eval.worlds.posters.questions import POSTER_KINDS, ask_poster
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS

_SEEN = 1600
_BATCH = 48
_AT_ONCE = 8
_PHRASES = 3
_HELD_OUT = 96
_LONGEST = 6
_LOG_EVERY = 100


def start_matcher(tower: dict[str, Tensor], folder: Path) -> Matcher:
    """A CLIP around the trained `tower` with the text tower and projections of tiny-clip.

    Args:
        tower: State of `CLIPVisionModel`.
        folder: Of tiny-clip.
    """
    model = Matcher(tower, make_clip_config(IDS, IMAGE_SIZE))
    model.clip.vision_model.set_attn_implementation("sdpa")
    known = CLIPModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    name = "text_model.embeddings.token_embedding.weight"
    words = known.pop(name)
    text = {key: value for key, value in known.items() if not key.startswith("vision_model.")}
    model.clip.load_state_dict(text, strict=False)
    with torch.no_grad():
        model.clip.text_model.embeddings.token_embedding.weight[: len(words)] = words
    return model


def _phrase(poster: Poster, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A text and the indices of the items that it is about; those of bars follow."""
    if rng.random() < 0.5:
        kind = POSTER_KINDS[int(rng.integers(len(POSTER_KINDS)))]
        question = ask_poster(poster, kind, rng)
        if question is not None and question.about:
            after = len(poster.items) if kind == "chart" else 0
            return question.text, tuple(after + index for index in question.about)
    item = poster.items[int(rng.integers(len(poster.items)))]
    fields = ["name", "kind", "place"] + (["color"] if item.color else [])
    field = fields[int(rng.integers(len(fields)))]
    text = getattr(item, field)
    about = tuple(i for i, other in enumerate(poster.items) if getattr(other, field) == text)
    if field == "color":
        text = f"{text} figures"
    elif field != "place" and rng.random() < 0.5:
        text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    return text, about


def _list(poster: Poster, rng: np.random.Generator) -> str:
    names = list(dict.fromkeys(item.name for item in poster.items))
    chosen = rng.permutation(len(names))[:_LONGEST]
    return " , ".join(names[int(index)] for index in chosen)


def _texts(
    posters: Sequence[Poster], labels: NDArray[np.int8], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Phrases, [B, phrases, length], the patches they are about, [B, phrases, 576], and lists."""
    texts, masks = [], np.zeros((len(posters), _PHRASES, PATCHES), dtype=np.float32)
    for row, poster in enumerate(posters):
        for column in range(_PHRASES):
            text, about = _phrase(poster, rng)
            texts.append(text)
            masks[row, column] = np.isin(labels[row, OWNER], [index + 1 for index in about])
    phrases = clip_tokens(texts, IDS).reshape(len(posters), _PHRASES, -1)
    lists = clip_tokens([_list(poster, rng) for poster in posters], IDS)
    return phrases, torch.from_numpy(masks), lists


@torch.no_grad()
def _look(model: Matcher, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """What the frozen tower sees of pictures, a few at a time."""
    parts = [
        model.see(as_input(pixels[start : start + _AT_ONCE]))
        for start in range(0, len(pixels), _AT_ONCE)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@torch.no_grad()
def _measure(
    model: Matcher, posters: Sequence[Poster], seen: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Held-out: list retrieval among 96 posters, and how often the best patch is in the place."""
    picture, patches = model.embed(*seen)
    rng = np.random.default_rng(0)
    match = model.read(clip_tokens([_list(one, rng) for one in posters], IDS)) @ picture.T
    figures = {"retrieval": (match.argmax(-1) == torch.arange(len(posters))).float().mean().item()}
    named = [poster.items[0] for poster in posters]
    phrases = model.read(clip_tokens([f"a {item.name}" for item in named], IDS))
    best = torch.einsum("blnd,bd->bln", patches, phrases).argmax(-1)
    third = SIDE // 3
    for layer, name in enumerate(("patch", "last_patch")):
        hits = []
        for poster, item, patch in zip(posters, named, best[:, layer].tolist(), strict=True):
            cell = (patch // SIDE // third, patch % SIDE // third)
            alike = [other for other in poster.items if other.name == item.name]
            hits.append(cell in {(other.row // 2, other.column // 2) for other in alike})
        figures[name] = float(np.mean(hits))
    return figures


def train_clip(
    tower: dict[str, Tensor], tiny_clip: Path, posters: Posters, run: TrainingRun
) -> dict[str, Tensor]:
    """Train the text tower, or continue.

    Args:
        tower: State of the trained vision tower, which stays as it is.
        tiny_clip: Folder of the model to start from.
        posters: To train on.
        run: Where and how long.

    Returns:
        The float32 state of `CLIPModel`.
    """
    torch.manual_seed(run.seed)
    model = start_matcher(tower, tiny_clip)
    model.clip.vision_model.to(torch.bfloat16)  # as all of it is in training
    seeds = HELD_OUT_SEEDS[-_HELD_OUT:]
    held_out = [make_poster(seed) for seed in seeds]
    shown = _look(model, np.stack([render_poster(poster)[0] for poster in held_out]))
    seen = _look(model, posters.pixels[:_SEEN])
    trainer = Trainer(model, run.minutes * 60, muon_lr=2e-3, adam_lr=2e-3)
    checkpoint = run.folder / "small-clip.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    rng = np.random.default_rng([run.seed, 2, trainer.steps])
    while trainer.progress < 1:
        rows = np.sort(rng.choice(len(seen[0]), size=_BATCH, replace=False))
        made = [make_poster(int(row)) for row in rows]
        labels = posters.labels[rows].reshape(len(rows), -1, PATCHES)
        some = torch.from_numpy(rows)
        loss = model.losses((seen[0][some], seen[1][some]), *_texts(made, labels, rng))
        trainer.step(loss)
        if trainer.steps % _LOG_EVERY == 0 or trainer.progress >= 1:
            save_state(checkpoint, trainer.state())
            figures = {"loss": loss.item()} | _measure(model, held_out, shown)
            run.log(f"small-clip {trainer.steps} {trainer.spent:.0f}s {describe(figures.items())}")
    return clip_weights(trainer, tower)
