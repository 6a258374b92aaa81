"""Qwen stage 1: the vision tower with its merger, on what every token shows."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from dev.training.llava.data import Pictures, label
from dev.training.llava.model import vocabulary as llava_vocabulary
from dev.training.llava.tower import patch_losses
from dev.training.optim import Trainer, TrainingRun, describe, full_weights, save_state
from dev.training.qwen.data import (
    MERGE,
    OWNER,
    TOKEN_FIELDS,
    TOKENS,
    Clips,
    as_pairs,
    as_patches,
    label_clip,
    picture_labels,
)
from dev.training.qwen.model import IDS, SPECIAL, TEXT_WIDTH, make_config
from vlmcompress.eval.worlds.clips import FRAMES_PER_STEP, STEPS, make_clip, render_clip
from vlmcompress.eval.worlds.draw import render
from vlmcompress.eval.worlds.scene import (
    HELD_OUT_SEEDS,
    IMAGE_SIZE,
    PATCH_SIZE,
    make_scene,
)

_ALIGN = 0.5
_BATCH = 16
_HELD_OUT = 96
_LOG_EVERY = 50


def even_windows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within chunks of equal length, all at once.

    transformers goes through the chunks one by one unless the name of the implementation says
    "flash", which in training is most of the time.
    """
    heads, length, width = query.shape[1:]
    chunk = int(cu_seq_lens_q[1])
    query, key, value = (
        x.reshape(heads, length // chunk, chunk, width) for x in (query, key, value)
    )
    weights = (query * scaling @ key.transpose(-1, -2)).softmax(dim=-1)
    return (weights @ value).reshape(1, heads, length, width).transpose(1, 2), None


class Tower(nn.Module):
    """Qwen's vision tower for many squares of 96x96 pixels at once."""

    def __init__(self) -> None:
        """Build a tower with random weights."""
        super().__init__()
        ALL_ATTENTION_FUNCTIONS.register("flash_even_windows", even_windows)
        config: Any = make_config().vision_config
        self.visual = Qwen2_5_VisionTransformerPretrainedModel(config)
        self.visual.config._attn_implementation = "flash_even_windows"
        self.layout: dict[int, dict[str, Tensor]] = {}

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Look at patches.

        Args:
            patches: [B * 144, 384], of `as_patches`.

        Returns:
            What the merger reads, [B, 36, 4 * VISION_WIDTH] (normalised, windows undone), and
            what it gives, [B, 36, TEXT_WIDTH].
        """
        count = len(patches) // (TOKENS * MERGE**2)
        layout = dict(self._layout(count))
        grid = torch.tensor([[1, IMAGE_SIZE // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE]] * count)
        window = layout["window_index"]
        out = self.visual(patches, grid_thw=grid, **layout)
        states = self.visual.merger.ln_q(out.last_hidden_state)
        states = states.reshape(count * TOKENS, -1)[torch.argsort(window)]
        return states.reshape(count, TOKENS, -1), out.pooler_output.reshape(count, TOKENS, -1)

    def _layout(self, count: int) -> dict[str, Tensor]:
        """Positions and windows of `count` squares, which transformers would find one by one."""
        if count not in self.layout:
            side = IMAGE_SIZE // PATCH_SIZE
            grid = torch.tensor([[1, side, side]] * count)
            index, windows = get_vision_window_index(
                grid, MERGE, self.visual.window_size, PATCH_SIZE
            )
            self.layout[count] = {
                "position_ids": get_vision_position_ids(grid, MERGE),
                "cu_seqlens": get_vision_cu_seqlens(grid),
                "window_index": index,
                "cu_window_seqlens": windows,
            }
        return self.layout[count]


def word_table() -> tuple[Tensor, Tensor]:
    """Which words describe a token.

    Returns:
        The ids of all describing words, [W], and for each field and value which of them apply,
        [fields, values, W] float. The middle of an object is called "object"; sizes and motion
        have no word of their own.
    """
    named = ("shape", "color", "glyph")
    words = {name: list(TOKEN_FIELDS[name]) for name in named} | {"middle": ["object"]}
    ids = sorted({IDS[word] for several in words.values() for word in several})
    values = max(len(several) for several in TOKEN_FIELDS.values()) + 1
    table = torch.zeros(len(TOKEN_FIELDS), values, len(ids))
    for row, field in enumerate(TOKEN_FIELDS):
        for value, word in enumerate(words.get(field, [])):
            table[row, value + 1, ids.index(IDS[word])] = 1
    return torch.tensor(ids), table


def align_loss(scores: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    """How badly tokens match the words that describe them.

    Args:
        scores: [B, 36, W], logits of the words of `word_table`.
        labels: [B, ROWS, 36].
        table: Of `word_table`.
    """
    wanted = labels.long().clamp(min=0)
    words = sum(table[field][wanted[:, field]] for field in range(len(TOKEN_FIELDS)))
    assert isinstance(words, Tensor)
    each = F.binary_cross_entropy_with_logits(scores.float(), words, reduction="none").sum(-1)
    return each[labels[:, 0] > 0].mean() + each[labels[:, 0] == 0].mean()


def llava_embeddings(folder: Path) -> Tensor:
    """Word embeddings of tiny-llava in the order of this model's ids, [V, TEXT_WIDTH].

    New words get random rows of the same length.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder)
    old: Tensor = model.model.language_model.embed_tokens.weight.detach().float()
    rows: Tensor = F.normalize(torch.randn(len(IDS), TEXT_WIDTH), dim=-1) * old.norm(dim=-1).mean()
    twins = {"<pad>": SPECIAL["pad"], "<s>": SPECIAL["start"], "</s>": SPECIAL["end"]}
    for row, word in zip(old, llava_vocabulary(), strict=True):
        name = twins.get(word, word)
        if name in IDS:
            rows[IDS[name]] = row
    return rows


class LabelledTower(nn.Module):
    """The tower with linear heads, which are thrown away after training."""

    def __init__(self, words: Tensor) -> None:
        """Build it; `words` are the embeddings that tokens shall resemble, [V, TEXT_WIDTH]."""
        super().__init__()
        self.tower = Tower()
        self.head = nn.Linear(TEXT_WIDTH, sum(len(w) + 1 for w in TOKEN_FIELDS.values()))
        ids, self.table = word_table()
        self.register_buffer("words", words[ids])
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.threshold = nn.Parameter(torch.tensor(-3.0))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all classes, [B, 36, classes], and of the describing words, [B, 36, W]."""
        tokens = self.tower(patches)[1]
        scores = (tokens @ self.words.T).float() * self.sharpness.float() + self.threshold.float()
        return self.head(tokens).float(), scores


def _batch(pictures: Pictures, clips: Clips, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Patches and labels of as many pictures as steps of clips."""
    rows = np.sort(rng.choice(len(pictures), size=_BATCH, replace=False))
    chosen = np.sort(rng.choice(len(clips), size=_BATCH, replace=False))
    steps = [_step(clips.labels[row], rng) for row in chosen]
    moving = np.stack(
        [
            clips.frames[row, step * FRAMES_PER_STEP : (step + 1) * FRAMES_PER_STEP]
            for row, step in zip(chosen, steps, strict=True)
        ]
    )
    frames = np.concatenate([as_pairs(pictures.pixels[rows]), moving])
    labels = np.concatenate([picture_labels(pictures.labels[rows]), clips.labels[chosen, steps]])
    return as_patches(frames), torch.from_numpy(labels)


def _step(labels: NDArray[np.int8], rng: np.random.Generator) -> int:
    """A step of a clip, mostly one that shows an object."""
    shown = np.flatnonzero(labels[:, OWNER].max(-1) > 0)
    if len(shown) and rng.random() < 0.9:
        return int(rng.choice(shown))
    return int(rng.integers(STEPS))


@torch.no_grad()
def _measure(model: LabelledTower, patches: Tensor, labels: Tensor) -> str:
    logits = torch.cat([model(part)[0] for part in torch.split(patches, 64 * TOKENS * MERGE**2)])
    figures = []
    widths = [len(words) + 1 for words in TOKEN_FIELDS.values()]
    for field, scores in enumerate(torch.split(logits, widths, dim=-1)):
        wanted = labels[:, field].long()
        right = scores.argmax(dim=-1) == wanted
        figures.append((list(TOKEN_FIELDS)[field], right[wanted > 0].float().mean().item()))
        figures.append(("none", right[wanted == 0].float().mean().item()))
    return describe(figures)


def _held_out() -> tuple[Tensor, Tensor]:
    pairs, labels = [], []
    for seed in HELD_OUT_SEEDS[:_HELD_OUT]:
        scene = make_scene(seed)
        picture, cover = render(scene)
        pairs.append(as_pairs(picture[None]))
        labels.append(picture_labels(label(scene, cover)[None]))
        clip = make_clip(seed)
        frames, covers = render_clip(clip)
        pairs.append(frames[None, :FRAMES_PER_STEP])
        labels.append(label_clip(clip, covers)[:1])
    return as_patches(np.concatenate(pairs)), torch.from_numpy(np.concatenate(labels))


def train_tower(
    llava: Path, pictures: Pictures, clips: Clips, run: TrainingRun
) -> dict[str, Tensor]:
    """Train tower and merger, or continue.

    Args:
        llava: Model folder of tiny-llava, whose words the tokens shall resemble.
        pictures: To train on.
        clips: To train on.
        run: How.

    Returns:
        The float32 weights of the tower.
    """
    torch.manual_seed(run.seed)
    model = LabelledTower(llava_embeddings(llava))
    trainer = Trainer(model, run.minutes * 60)
    checkpoint = run.folder / "qwen-tower.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    held_out = _held_out()
    rng = np.random.default_rng([run.seed, 5, run.rank, trainer.steps])
    while trainer.progress < 1:
        patches, labels = _batch(pictures, clips, rng)
        logits, scores = model(patches)
        losses = patch_losses(logits, labels, TOKEN_FIELDS)
        losses.append(_ALIGN * align_loss(scores, labels, model.table))
        trainer.step(torch.stack(losses).sum())
        if trainer.steps % _LOG_EVERY == 0 or trainer.progress >= 1:
            aligned = f"align {losses[-1].item():.3f} {_measure(model, *held_out)}"
            run.log(f"qwen-tower {trainer.steps} {trainer.spent:.0f}s {aligned}")
            if run.rank == 0:
                save_state(checkpoint, trainer.state())
    prefix = "tower.visual."
    return {
        name.removeprefix(prefix): value
        for name, value in full_weights(trainer).items()
        if name.startswith(prefix)
    }
