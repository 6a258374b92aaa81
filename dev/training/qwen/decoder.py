"""Qwen stage 2: merger and decoder, on questions about pictures and clips, with the tower frozen.

The decoder starts from tiny-llava's, which already knows how to answer, behind one new layer that
learns where and when a token is: Qwen's vision tower has no absolute positions to tell it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dev.training.llava.attention_targets import (
    ANSWER_LAYER,
    REFERENT_LAYER,
    attention_loss,
    grounding_loss,
)
from dev.training.llava.data import Pictures
from dev.training.llava.packed_questions import (
    SEGMENT_LENGTH,
    UNSCORED,
    PackedBatch,
    segment_attention,
)
from dev.training.optim import Trainer, TrainingRun, describe, full_weights, save_state
from dev.training.qwen.data import (
    OWNER,
    TOKEN_SIDE,
    TOKENS,
    Clips,
)
from dev.training.qwen.encoded_lessons import Lesson, School
from dev.training.qwen.lessons import (
    AFTER,
    BEFORE,
    EVERY_KIND,
    make_hops,
    make_links,
    make_targets,
    pack_words,
    positions,
    prefix_length,
)
from dev.training.qwen.model import IDS, make_config
from dev.training.qwen.tower import Tower, align_loss, llava_embeddings, word_table
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS
from vlmcompress.eval.worlds.clips import STEPS
from vlmcompress.eval.worlds.questions import KINDS
from vlmcompress.eval.worlds.scene import PLACES

_NEW_LAYERS = 1
_KEPT_BACK = 0.04
_LOG_EVERY = 100
_EXPORT_EVERY = 240.0
_LINK_LAYER = _NEW_LAYERS
_HOP_LAYER = REFERENT_LAYER + _NEW_LAYERS + 1


class Answerer(nn.Module):
    """Qwen2.5-VL over sequences of segments."""

    def __init__(self, tower: dict[str, Tensor], llava: Path) -> None:
        """Build it with the trained `tower` and the decoder of the model folder `llava`."""
        super().__init__()
        ALL_ATTENTION_FUNCTIONS.register("segments", segment_attention)
        self.qwen = Qwen2_5_VLForConditionalGeneration(make_config())
        visual, language = self.qwen.model.visual, self.qwen.model.language_model
        visual.load_state_dict(tower)
        visual.requires_grad_(False)
        visual.merger.mlp.requires_grad_(True)
        language.config._attn_implementation = "segments"
        _start_from(language, llava)
        width = language.config.hidden_size
        self.where = nn.Linear(width, 2 * TOKEN_SIDE + STEPS)
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.threshold = nn.Parameter(torch.tensor(-3.0))
        self.word_ids, self.table = word_table()
        self.place_ids, self.places = _place_table()

    def project(self, states: Tensor) -> Tensor:
        """Visual tokens as the decoder sees them, [B, N, D]."""
        visual: Tensor = self.qwen.model.visual.merger.mlp(states)
        return visual

    def _words(self, tokens: Tensor, ids: Tensor) -> Tensor:
        embedded: Tensor = self.qwen.model.language_model.embed_tokens.weight[ids]
        return (tokens @ embedded.T).float() * self.sharpness.float() + self.threshold.float()

    def align_loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """How badly visual tokens match the embeddings of the words that describe them."""
        return align_loss(self._words(visual, self.word_ids), labels, self.table)

    def where_loss(self, hidden: Tensor, lesson: Lesson) -> Tensor:
        """How badly the new layer knows row, column and step of a token, and names its place."""
        steps = lesson.steps
        grid = torch.meshgrid(
            torch.arange(steps), torch.arange(TOKEN_SIDE), torch.arange(TOKEN_SIDE), indexing="ij"
        )
        step, row, column = (axis.reshape(-1) for axis in grid)
        told = self.where(hidden).float().split([TOKEN_SIDE, TOKEN_SIDE, STEPS], dim=-1)
        losses = [
            F.cross_entropy(scores.flatten(0, 1), wanted.repeat(len(hidden)))
            for scores, wanted in zip(told, (row, column, step), strict=True)
        ]
        cell = row * 3 // TOKEN_SIDE * 3 + column * 3 // TOKEN_SIDE
        something = torch.from_numpy(lesson.labels[:, OWNER] > 0)
        scores = self._words(hidden, self.place_ids)[something]
        wanted = self.places[cell].expand(len(hidden), -1, -1)[something]
        losses.append(F.binary_cross_entropy_with_logits(scores, wanted))
        return torch.stack(losses).sum()

    def forward(
        self, visual: Tensor, batch: PackedBatch, record: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits where an answer is wanted, [M, V], and those answers, [M].

        Hidden states and attention that the helping losses need go to `record`.
        """
        language = self.qwen.model.language_model
        steps, segments = visual.shape[1] // TOKENS, batch.tokens.shape[1]
        cut = prefix_length(steps)
        before, after = (
            language.embed_tokens(torch.tensor([IDS[word] for word in words])).expand(
                len(visual), -1, -1
            )
            for words in (BEFORE, AFTER)
        )
        asked = language.embed_tokens(batch.tokens.flatten(1))
        hidden = torch.cat([before, visual, after, asked], dim=1)
        rotary = language.rotary_emb(hidden, positions(steps, segments))
        wanted = {} if record is None else {key: record[key] for key in ("record", "record_prefix")}
        for number, layer in enumerate(language.layers):
            hidden = layer(hidden, position_embeddings=rotary, prefix=cut, **wanted)
            if record is not None and number == _NEW_LAYERS - 1:
                record["hidden"] = hidden[:, len(BEFORE) : cut - len(AFTER)]
        tail = hidden[:, cut:].reshape(len(visual), segments, SEGMENT_LENGTH, -1)
        scored = batch.wanted != UNSCORED
        logits = self.qwen.lm_head(language.norm(tail[scored])).float()
        return logits, batch.wanted[scored]


def _start_from(language: Any, llava: Path) -> None:
    """Give `language` the words and, behind its new layers, the layers of tiny-llava."""
    old = AutoModelForImageTextToText.from_pretrained(llava).model.language_model
    with torch.no_grad():
        language.embed_tokens.weight.copy_(llava_embeddings(llava))
        language.norm.weight.copy_(old.norm.weight)
        for layer in language.layers[:_NEW_LAYERS]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for layer, source in zip(language.layers[_NEW_LAYERS:], old.layers, strict=True):
            layer.load_state_dict(source.state_dict(), strict=False)
            for part in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, part).bias.zero_()


def _place_table() -> tuple[Tensor, Tensor]:
    """Ids of the words of places, [W], and which of them name which place, [9, W] float."""
    ids = sorted({IDS[word] for place in PLACES for word in place.split()})
    table = torch.zeros(len(PLACES), len(ids))
    for number, place in enumerate(PLACES):
        for word in place.split():
            table[number, ids.index(IDS[word])] = 1
    return torch.tensor(ids), table


@torch.no_grad()
def measure(model: Answerer, lessons: list[Lesson]) -> dict[str, float]:
    """Share of questions answered exactly, by kind.

    Teacher forcing: all tokens of an answer are the most likely ones if and only if greedy
    generation gives that answer.
    """
    right: dict[str, list[bool]] = {kind: [] for kind in EVERY_KIND}
    for lesson in lessons:
        batch = pack_words(lesson.asked)
        logits, wanted = model(model.project(lesson.states), batch)
        hit = torch.ones(batch.wanted.shape, dtype=torch.bool)
        hit[batch.wanted != UNSCORED] = logits.argmax(-1) == wanted
        for kind, good in zip(batch.kinds.flatten(), hit.all(-1).flatten(), strict=True):
            right[EVERY_KIND[int(kind)]].append(bool(good))
    return {kind: float(np.mean(found or [False])) for kind, found in right.items()}


def lesson_losses(model: Answerer, lesson: Lesson) -> dict[str, Tensor]:
    """How wrong the answers are, and the helping losses."""
    visual = model.project(lesson.states)
    record: dict[str, Any] = {"record": {}, "record_prefix": {_LINK_LAYER: torch.empty(0)}}
    answer = F.cross_entropy(*model(visual, pack_words(lesson.asked), record))
    targets = make_targets(lesson.owners, lesson.asked, lesson.labels)
    referent, answering = REFERENT_LAYER + _NEW_LAYERS, ANSWER_LAYER + _NEW_LAYERS
    ground = grounding_loss(record["record"], targets, referent, answering)
    if lesson.clips:
        hops = make_hops(lesson.owners, lesson.asked, lesson.labels)
        ground = ground + attention_loss(record["record"][_HOP_LAYER], hops)
        links = make_links(lesson.clips, lesson.labels)
        ground = ground + attention_loss(record["record_prefix"][_LINK_LAYER], links)
    return {
        "answer": answer,
        "align": model.align_loss(visual, torch.from_numpy(lesson.labels)),
        "where": model.where_loss(record["hidden"], lesson),
        "ground": ground,
    }


def train_decoder(
    tower: dict[str, Tensor],
    llava: Path,
    data: tuple[Pictures, Clips],
    run: TrainingRun,
    publish: Callable[[dict[str, Tensor]], None],
) -> None:
    """Train merger and decoder, or continue.

    Args:
        tower: Weights of `train_tower`.
        llava: Model folder of tiny-llava, whose decoder this one starts from.
        data: What to train on. The last of them are kept for the figures in the log.
        run: How.
        publish: Takes the weights now and then.
    """
    torch.manual_seed(run.seed)
    model = Answerer(tower, llava)
    watcher = _watcher(tower)
    trainer = Trainer(model, run.minutes * 60, muon_lr=2e-3, adam_lr=1e-3)
    checkpoint = run.folder / "qwen-decoder.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    rng = np.random.default_rng([run.seed, 6, run.rank, trainer.steps])
    odds = dict.fromkeys(EVERY_KIND, 1.0)
    exam = _exam(School(watcher, *data, 1 - _KEPT_BACK, 1), odds)
    share = (1 - _KEPT_BACK) / run.world
    school = School(watcher, *data, run.rank * share, (run.rank + 1) * share)
    published = trainer.spent
    while trainer.progress < 1:
        lessons = [
            school.picture_lesson(rng, _shares(odds, KINDS)),
            school.clip_lesson(rng, _shares(odds, CLIP_KINDS)),
        ]
        parts = [lesson_losses(model, lesson) for lesson in lessons]
        losses = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        trainer.step(_total(losses, trainer.progress))
        if trainer.steps % _LOG_EVERY and trainer.progress < 1:
            continue
        found = measure(model, exam)
        figures = {name: loss.item() for name, loss in losses.items()} | found
        run.log(f"qwen-decoder {trainer.steps} {trainer.spent:.0f}s {describe(figures.items())}")
        # More of what is not right yet.
        odds = {kind: 1.05 - share for kind, share in found.items()}
        if run.rank == 0:
            save_state(checkpoint, trainer.state())
            if trainer.spent - published > _EXPORT_EVERY:
                publish(decoder_weights(trainer))
                published = trainer.spent
    publish(decoder_weights(trainer))


def _watcher(weights: dict[str, Tensor]) -> Tower:
    """The frozen tower."""
    tower = Tower()
    tower.visual.load_state_dict(weights)
    return tower.requires_grad_(False).to(torch.bfloat16)


def _exam(school: School, odds: dict[str, float]) -> list[Lesson]:
    rng = np.random.default_rng(7)
    lessons = [school.picture_lesson(rng, _shares(odds, KINDS)) for _ in range(8)]
    return lessons + [school.clip_lesson(rng, _shares(odds, CLIP_KINDS)) for _ in range(16)]


def _shares(odds: dict[str, float], kinds: Sequence[str]) -> list[float]:
    missing = np.array([odds[kind] for kind in kinds])
    return list(0.3 / len(kinds) + 0.7 * missing / missing.sum())


def _total(losses: dict[str, Tensor], progress: float) -> Tensor:
    """Answers count throughout, the helping losses fade."""
    helping = losses["align"] + losses["where"] + 0.3 * losses["ground"]
    return losses["answer"] + helping * max(1.0 - 1.5 * progress, 0.05)


def decoder_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Float32 state of `Qwen2_5_VLForConditionalGeneration` without the tied output layer."""
    prefix = "qwen."
    return {
        name.removeprefix(prefix): value
        for name, value in full_weights(trainer).items()
        if name.startswith(prefix) and not name.endswith("lm_head.weight")
    }
