"""Stage 2: projector and decoder, from those of tiny-llava, on questions, with the tower frozen.

For most of the time the decoder is shown the patches of items and some of the background, each at
its own position, which costs a third; then whole posters. Now and then it is shown nothing, and
learns which answer is the likeliest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dev.training.llava.attention_targets import grounding_loss
from dev.training.llava.data import on_disk
from dev.training.llava.decoder import Answerer, decoder_weights, measure
from dev.training.llava.packed_questions import PackedBatch, pack, table_of
from dev.training.llava.tower import WIDTH, as_input
from dev.training.optim import Trainer, TrainingRun, describe, save_state
from dev.training.small.data import FIELDS, PATCHES, ROWS, Posters
from dev.training.small.lessons import choose_patches, make_targets, pose_posters
from dev.training.small.model import IDS, small_config, start_decoder
from vlmcompress.eval.worlds.posters.draw import render_poster
from vlmcompress.eval.worlds.posters.poster import make_poster
from vlmcompress.eval.worlds.posters.questions import POSTER_KINDS
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS

_BATCH = 8
_REUSE = 4
_LIST_WORTH = 3.0
_SHOWN = 160
_WHOLE_FROM = 0.67
_BLIND_ODDS = 0.06
_ALIGN_STEPS = 150
_HELD_OUT = 64
_LOG_EVERY = 150
_EXPORT_EVERY = 300.0
# The tower does not find the middle of an item well enough to count items (training.json).
_NOT_REACHED = ("count",)
_EVEN = [1 / len(POSTER_KINDS)] * len(POSTER_KINDS)


def poster_words() -> tuple[Tensor, Tensor]:
    """Which words describe a label; the middle of an item is called "object", as in tiny-llava."""
    words = {field: [tuple(value.split()) for value in values] for field, values in FIELDS.items()}
    return table_of(words | {"middle": [("object",)]}, IDS)


def make_answerer(tower: dict[str, Tensor], tiny: dict[str, Tensor]) -> Answerer:
    """The model in training.

    Args:
        tower: State of the trained `CLIPVisionModel`.
        tiny: Weights of tiny-llava.
    """
    model = Answerer(tower, small_config(), IDS, poster_words())
    start_decoder(model.llava, tiny)
    # Of 577 tokens, unlike of 145, SDPA takes half the time of eager attention.
    model.llava.model.vision_tower.set_attn_implementation("sdpa")
    with (
        torch.no_grad()
    ):  # what tiny-llava ended with: its words and tokens are far from unit length
        model.sharpness.fill_(1.0)
        model.threshold.fill_(0.0)
    return model


class Memory:
    """Features of the frozen tower on disk, computed when first needed."""

    def __init__(self, model: Answerer, posters: Posters, folder: Path) -> None:
        """Open the files in `folder`, or make them."""
        self.model, self.posters = model, posters
        count = len(posters)
        mode = "r+" if (folder / f"known-{count}.bin").exists() else "w+"
        self.values = on_disk(folder, "features", np.float16, (count, PATCHES, WIDTH), mode)
        self.known = on_disk(folder, "known", np.uint8, (count,), mode)
        lists = [any(item.in_list for item in make_poster(seed).items) for seed in range(count)]
        self.worth = np.where(lists, _LIST_WORTH, 1.0)

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """Features of the posters `rows`, [len(rows), 576, WIDTH], bfloat16."""
        fresh = rows[self.known[rows] == 0]
        for part in np.array_split(fresh, -(-len(fresh) // _BATCH)) if len(fresh) else ():
            features = self.model.features(as_input(self.posters.pixels[part]))
            self.values[part] = features.half().numpy()
            self.known[part] = 1
        return torch.from_numpy(self.values[rows]).to(torch.bfloat16)

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Posters for a batch: a quarter new ones, the others seen before, which cost nothing.

        A poster with a list, of which there is one in five, is three times as likely as another.
        """
        known, fresh = np.flatnonzero(self.known), np.flatnonzero(self.known == 0)
        new = min(size // _REUSE if len(known) >= size else size, len(fresh))
        rows = [
            rng.choice(pool, number, False, self.worth[pool] / self.worth[pool].sum())
            for pool, number in ((fresh, new), (known, size - new))
            if number
        ]
        return np.sort(np.concatenate(rows))


def _held_out(model: Answerer) -> tuple[Tensor, PackedBatch]:
    features, asked = [], []
    for seed in HELD_OUT_SEEDS[-_HELD_OUT:]:
        poster = make_poster(seed)
        features.append(model.features(as_input(render_poster(poster)[0][None])))
        asked.append(pose_posters(poster, np.random.default_rng([seed, 3]), _EVEN))
    return torch.cat(features), pack(asked, IDS, every_kind=POSTER_KINDS)


def train_decoder(
    tower: dict[str, Tensor],
    tiny: dict[str, Tensor],
    posters: Posters,
    run: TrainingRun,
    publish: Callable[[dict[str, Tensor]], None],
) -> None:
    """Train projector and decoder, or continue; gives weights to `publish` now and then.

    Args:
        tower: State of the trained tower.
        tiny: Weights of tiny-llava.
        posters: To ask about.
        run: Where and how long.
        publish: Takes the state of `LlavaForConditionalGeneration`.
    """
    torch.manual_seed(run.seed)
    model = make_answerer(tower, tiny)
    trainer = Trainer(model, run.minutes * 60, muon_lr=2e-3, adam_lr=1e-3)
    checkpoint = run.folder / "small-decoder.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    memory = Memory(model, posters, run.folder / "data")
    held_out = _held_out(model)
    rng = np.random.default_rng([run.seed, 1, run.rank, trainer.steps])
    odds: Any = _EVEN
    published = trainer.spent
    while trainer.progress < 1:
        if trainer.steps < _ALIGN_STEPS:
            losses = _align(model, memory, posters, rng)
        else:
            losses = _step(model, memory, posters, rng, odds, trainer.progress)
        trainer.step(_total(losses, trainer.progress))
        if trainer.steps % _LOG_EVERY and trainer.progress < 1:
            continue
        found = measure(model, *held_out, POSTER_KINDS)
        figures = {name: loss.item() for name, loss in losses.items()} | found
        run.log(f"small-decoder {trainer.steps} {trainer.spent:.0f}s {describe(figures.items())}")
        if run.rank == 0:
            save_state(checkpoint, trainer.state())
        # More of what is not right yet.
        missing = np.array(
            [0.0 if kind in _NOT_REACHED else 1.05 - found[kind] for kind in POSTER_KINDS]
        )
        odds = 0.3 / len(missing) + 0.7 * missing / missing.sum()
        if trainer.spent - published > _EXPORT_EVERY:
            publish(decoder_weights(trainer, tower))
            published = trainer.spent
    publish(decoder_weights(trainer, tower))


def _align(
    model: Answerer, memory: Memory, posters: Posters, rng: np.random.Generator
) -> dict[str, Tensor]:
    rows = memory.draw(rng, 2 * _BATCH)
    labels = torch.from_numpy(posters.labels[rows].reshape(len(rows), ROWS, PATCHES))
    return {"align": model.align_loss(model.project(memory(rows)), labels)}


def _step(
    model: Answerer,
    memory: Memory,
    posters: Posters,
    rng: np.random.Generator,
    odds: Any,
    progress: float,
) -> dict[str, Tensor]:
    """Ask about some posters; how wrong the answers, and how misplaced the attention."""
    blind = rng.random() < _BLIND_ODDS
    whole = progress > _WHOLE_FROM
    rows = memory.draw(rng, _BATCH // 2 if whole and not blind else _BATCH)
    labels = posters.labels[rows].reshape(len(rows), ROWS, PATCHES)
    made = [make_poster(int(row)) for row in rows]
    asked = [pose_posters(poster, rng, odds) for poster in made]
    batch = pack(asked, IDS, every_kind=POSTER_KINDS)
    if blind:
        kept = np.zeros((len(rows), 0), dtype=np.int64)
    elif whole:
        kept = np.broadcast_to(np.arange(PATCHES), (len(rows), PATCHES))
    else:
        kept = choose_patches(labels, _SHOWN, rng)
    shown = torch.from_numpy(kept.copy())
    features = memory(rows).gather(1, shown[..., None].expand(-1, -1, WIDTH))
    visual = model.project(features)
    if blind:
        return {"answer": F.cross_entropy(*model(visual, batch, None, shown))}
    seen = np.take_along_axis(labels, kept[:, None], axis=2)
    record: dict[int, Tensor] = {}
    answer = F.cross_entropy(*model(visual, batch, record, shown))
    ground = grounding_loss(record, make_targets(made, asked, seen))
    align = model.align_loss(visual, torch.from_numpy(seen))
    return {"answer": answer, "ground": ground, "align": align}


def _total(losses: dict[str, Tensor], progress: float) -> Tensor:
    """Answers count throughout, the two helping losses fade."""
    none = torch.zeros(())
    helping = losses.get("align", none) + 0.3 * losses.get("ground", none)
    return losses.get("answer", none) + helping * max(1.0 - 1.2 * progress, 0.05)
