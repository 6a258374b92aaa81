"""Stage 2: projector and decoder, on questions, with the tower frozen."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dev.training.llava.attention_targets import grounding_loss, make_targets
from dev.training.llava.data import PATCHES, Pictures
from dev.training.llava.model import make_config
from dev.training.llava.packed_questions import (
    IDS,
    PREFIX,
    SEGMENT_LENGTH,
    UNSCORED,
    PackedBatch,
    describe_patches,
    pack,
    pose,
    positions,
    segment_attention,
    word_table,
)
from dev.training.llava.tower import FEATURE_LAYER, WIDTH, as_input
from dev.training.optim import Trainer, describe, full_weights, save_state
from vlmcompress.eval.worlds.world import (
    HELD_OUT_SEEDS,
    KINDS,
    PATCH_SIZE,
    Scene,
    ask,
    make_scene,
    render,
)

_BATCH = 8
_ALIGN_STEPS = 200
_HELD_OUT = 64
_LOG_EVERY = 100
_EXPORT_EVERY = 300.0


class Answerer(nn.Module):
    """LLaVA over sequences of segments."""

    def __init__(
        self,
        tower: dict[str, Tensor],
        config: LlavaConfig,
        ids: Mapping[str, int],
        words: tuple[Tensor, Tensor],
    ) -> None:
        """Build a LLaVA with a trained tower and a random decoder.

        Args:
            tower: State of its `CLIPVisionModel`.
            config: Of the whole.
            ids: Number of every word.
            words: What `table_of` says of the labels.
        """
        super().__init__()
        ALL_ATTENTION_FUNCTIONS.register("segments", segment_attention)
        self.llava = LlavaForConditionalGeneration(config)
        inner = self.llava.model
        inner.vision_tower.load_state_dict(tower)
        inner.vision_tower.requires_grad_(False)
        inner.vision_tower.set_attn_implementation("eager")
        inner.language_model.config._attn_implementation = "segments"
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.threshold = nn.Parameter(torch.tensor(-3.0))
        self.prefix = torch.tensor([ids[word] for word in PREFIX])
        self.word_ids, self.table = words

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """What the projector reads, [B, N, WIDTH]."""
        out = self.llava.model.vision_tower(pixels, output_hidden_states=True)
        features: Tensor = out.hidden_states[FEATURE_LAYER][:, 1:]
        return features

    def project(self, features: Tensor) -> Tensor:
        """Visual tokens as the decoder sees them, [B, N, D]."""
        visual: Tensor = self.llava.model.multi_modal_projector(features)
        return visual

    def align_loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """How badly visual tokens match the embeddings of the words that describe them.

        With visual tokens that look like words, looking something up is copying; without this
        loss the decoder stalls for a long time before it finds that out.
        """
        words, something, nothing = describe_patches(labels, self.table)
        embedded = self.llava.model.language_model.embed_tokens.weight[self.word_ids]
        scores = (visual @ embedded.T).float() * self.sharpness.float() + self.threshold.float()
        each = F.binary_cross_entropy_with_logits(scores, words, reduction="none").sum(-1)
        return each[something].mean() + each[nothing].mean()

    def forward(
        self,
        visual: Tensor,
        batch: PackedBatch,
        record: dict[int, Tensor] | None = None,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits where an answer is wanted, [M, V], and those answers, [M].

        Args:
            visual: [B, K, D], what the decoder is shown of the pictures.
            batch: Questions.
            record: Takes the attention that `grounding_loss` needs.
            kept: [B, K], which patches these are; all of them if absent.
        """
        vision: Any = self.llava.config.vision_config
        patches = (vision.image_size // PATCH_SIZE) ** 2
        if kept is None:
            kept = torch.arange(patches).expand(len(visual), -1)
        segments, cut = batch.tokens.shape[1], len(self.prefix) + visual.shape[1]
        language = self.llava.model.language_model
        start = language.embed_tokens(self.prefix).expand(len(visual), -1, -1)
        asked = language.embed_tokens(batch.tokens.flatten(1))
        hidden = torch.cat([start, visual, asked], dim=1)
        rotary = language.rotary_emb(hidden, positions(kept, patches, segments))
        for layer in language.layers:
            hidden = layer(hidden, position_embeddings=rotary, record=record, prefix=cut)
        tail = hidden[:, cut:].reshape(len(visual), segments, SEGMENT_LENGTH, -1)
        scored = batch.wanted != UNSCORED
        logits = self.llava.lm_head(language.norm(tail[scored])).float()
        return logits, batch.wanted[scored]


@torch.no_grad()
def measure(
    model: Answerer, features: Tensor, batch: PackedBatch, kinds: Sequence[str] = KINDS
) -> dict[str, float]:
    """Share of questions answered exactly, by kind.

    Teacher forcing: all tokens of an answer are the most likely ones if and only if greedy
    generation gives that answer.
    """
    right = []
    for row in range(0, len(features), _BATCH):
        rows = slice(row, row + _BATCH)
        part = PackedBatch(batch.tokens[rows], batch.wanted[rows], batch.kinds[rows])
        logits, wanted = model(model.project(features[rows]), part)
        hit = torch.ones(part.wanted.shape, dtype=torch.bool)
        hit[part.wanted != UNSCORED] = logits.argmax(-1) == wanted
        right.append(hit.all(-1))
    every = torch.cat(right)
    return {
        kind: every[batch.kinds == number].float().mean().item()
        for number, kind in enumerate(kinds)
    }


def _held_out(model: Answerer) -> tuple[Tensor, PackedBatch]:
    pixels, asked = [], []
    for seed in HELD_OUT_SEEDS[-20 * _HELD_OUT :]:
        scene = make_scene(seed)
        rng = np.random.default_rng([seed, 3])
        questions = [ask(scene, kind, rng, wording) for kind in KINDS for wording in (0, 1)]
        if None in questions:
            continue
        asked.append([question for question in questions if question is not None])
        pixels.append(render(scene)[0])
        if len(asked) == _HELD_OUT:
            break
    return model.features(as_input(np.stack(pixels))), pack(asked)


class _Memory:
    """Features of the frozen tower, computed when first needed."""

    def __init__(self, model: Answerer, pictures: Pictures) -> None:
        self.model, self.pictures = model, pictures
        self.known = np.zeros(len(pictures), dtype=bool)
        self.values = torch.empty(len(pictures), PATCHES, WIDTH, dtype=torch.bfloat16)

    def __call__(self, rows: np.ndarray) -> Tensor:
        fresh = rows[~self.known[rows]]
        if len(fresh):
            self.values[fresh] = self.model.features(as_input(self.pictures.pixels[fresh]))
            self.known[fresh] = True
        return self.values[rows]


def train_decoder(
    tower: dict[str, Tensor],
    pictures: Pictures,
    folder: Path,
    minutes: float,
    seed: int,
    rank: int,
    log: Callable[[str], None],
    publish: Callable[[dict[str, Tensor]], None],
) -> None:
    """Train projector and decoder, or continue; gives weights to `publish` now and then."""
    torch.manual_seed(seed)
    model = Answerer(tower, make_config(), IDS, word_table())
    trainer = Trainer(model, minutes * 60, adam_lr=1e-3)
    checkpoint = folder / "decoder.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    rng = np.random.default_rng([seed, 1, rank, trainer.steps])
    memory = _Memory(model, pictures)
    held_out = _held_out(model)
    odds = np.ones(len(KINDS)) / len(KINDS)
    published = trainer.spent
    while trainer.progress < 1:
        aligning = trainer.steps < _ALIGN_STEPS
        size = _BATCH * (8 if aligning else 1)
        rows = np.sort(rng.choice(len(pictures), size=size, replace=False))
        visual, labels = model.project(memory(rows)), pictures.labels[rows]
        losses = {"align": model.align_loss(visual, torch.from_numpy(labels))}
        if not aligning:
            scenes = [make_scene(int(row)) for row in rows]
            losses |= _question_losses(model, visual, labels, scenes, rng, odds)
        trainer.step(_total(losses, trainer.progress))
        if trainer.steps % _LOG_EVERY and trainer.progress < 1:
            continue
        found = measure(model, *held_out)
        figures = {name: loss.item() for name, loss in losses.items()} | found
        log(f"decoder {trainer.steps} {trainer.spent:.0f}s {describe(figures.items())}")
        if rank == 0:
            save_state(checkpoint, trainer.state())
        # More of what is not right yet.
        missing = np.array([1.05 - found[kind] for kind in KINDS])
        odds = 0.3 / len(KINDS) + 0.7 * missing / missing.sum()
        if trainer.spent - published > _EXPORT_EVERY:
            publish(decoder_weights(trainer, tower))
            published = trainer.spent
    publish(decoder_weights(trainer, tower))


def _question_losses(
    model: Answerer,
    visual: Tensor,
    labels: NDArray[np.int8],
    scenes: list[Scene],
    rng: np.random.Generator,
    odds: NDArray[np.float64],
) -> dict[str, Tensor]:
    """Ask about every scene; how wrong the answers, and how misplaced the attention."""
    asked = [pose(scene, rng, list(odds)) for scene in scenes]
    targets = make_targets(scenes, asked, labels, SEGMENT_LENGTH)
    record: dict[int, Tensor] = {}
    answer = F.cross_entropy(*model(visual, pack(asked), record))
    return {"answer": answer, "ground": grounding_loss(record, targets)}


def _total(losses: dict[str, Tensor], progress: float) -> Tensor:
    """Answers count throughout, the two helping losses fade."""
    helping = losses["align"] + 0.3 * losses.get("ground", torch.zeros(()))
    return losses.get("answer", torch.zeros(())) + helping * max(1.0 - 1.5 * progress, 0.05)


def decoder_weights(trainer: Trainer, tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 state of `LlavaForConditionalGeneration` without the tied output layer."""
    prefix = "llava."
    weights = {
        name.removeprefix(prefix): value
        for name, value in full_weights(trainer).items()
        if name.startswith(prefix) and not name.endswith("lm_head.weight")
    }
    return weights | {f"model.vision_tower.{name}": value for name, value in tower.items()}
