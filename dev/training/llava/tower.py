"""Stage 1: the vision tower alone, on what lies on each patch and what the picture shows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from dev.training.llava.data import FIELDS, IGNORED, TAGS, Pictures, label, tag
from dev.training.optim import Trainer, describe, full_weights, save_state
from vlmcompress.eval.worlds.world import HELD_OUT_SEEDS, IMAGE_SIZE, PATCH_SIZE, make_scene, render

FEATURE_LAYER = -2
WIDTH = 128
_HELD_OUT = 256


def vision_config(image_size: int = IMAGE_SIZE) -> CLIPVisionConfig:
    """The tower: 6 layers of width 128, patches of 8x8 pixels and CLS."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=PATCH_SIZE,
        projection_dim=64,
        hidden_act="gelu",
    )


def as_input(pixels: NDArray[np.uint8]) -> Tensor:
    """[B, H, W, 3] bytes to [B, 3, H, W] in [-1, 1], as the image processor does it."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1.0


class LabelledTower(nn.Module):
    """The tower with linear heads, which are thrown away after training."""

    def __init__(self) -> None:
        """Build a tower with random weights."""
        super().__init__()
        self.tower = CLIPVisionModel(vision_config())
        # Twice as fast as SDPA on a CPU with 145 tokens; weights are the same for both.
        self.tower.set_attn_implementation("eager")
        self.patch_head = nn.Linear(WIDTH, sum(len(words) + 1 for words in FIELDS.values()))
        self.tag_head = nn.Linear(WIDTH, TAGS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch logits, [B, 144, all classes], and tag logits, [B, TAGS]."""
        out = self.tower(pixels, output_hidden_states=True)
        patches = out.hidden_states[FEATURE_LAYER][:, 1:]
        return self.patch_head(patches).float(), self.tag_head(out.pooler_output).float()


def patch_losses(
    logits: Tensor, labels: Tensor, fields: Mapping[str, Sequence[str]]
) -> list[Tensor]:
    """Cross-entropy of every field.

    Args:
        logits: [B, N, classes of all fields], the class 0 of each field being "nothing there".
        labels: [B, rows, N], a row for each field first.
        fields: Name -> what may be there.
    """
    losses = []
    widths = [len(words) + 1 for words in fields.values()]
    for field, scores in enumerate(torch.split(logits, widths, dim=-1)):
        wanted = labels[:, field].long()
        each = F.cross_entropy(
            scores.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        # Apart, or the many background patches drown the few that carry something.
        something, nothing = wanted > 0, wanted == 0
        losses.append(_mean(each, something) + _mean(each, nothing))
    return losses


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of the chosen values; 0 where none is."""
    return values[where].sum() / where.sum().clamp(min=1)


@torch.no_grad()
def _measure(model: LabelledTower, pixels: Tensor, labels: Tensor, tags: Tensor) -> str:
    outs = [model(part) for part in torch.split(pixels, 64)]
    logits = torch.cat([patches for patches, _ in outs])
    found = torch.cat([scores for _, scores in outs]) > 0
    figures = []
    widths = [len(words) + 1 for words in FIELDS.values()]
    for field, scores in zip(FIELDS, torch.split(logits, widths, dim=-1), strict=True):
        wanted = labels[:, list(FIELDS).index(field)].long()
        right = scores.argmax(dim=-1) == wanted
        figures.append((field, right[wanted > 0].float().mean().item()))
        figures.append(("none", right[wanted == 0].float().mean().item()))
    wanted = tags.bool()
    figures.append(("tags", (2 * (found & wanted).sum() / (found.sum() + wanted.sum())).item()))
    return describe(figures)


def _held_out() -> tuple[Tensor, Tensor, Tensor]:
    pixels, labels, tags = [], [], []
    for seed in HELD_OUT_SEEDS[:_HELD_OUT]:
        scene = make_scene(seed)
        picture, cover = render(scene)
        pixels.append(picture)
        labels.append(label(scene, cover))
        tags.append(tag(scene))
    return (
        as_input(np.stack(pixels)),
        torch.from_numpy(np.stack(labels)),
        torch.from_numpy(np.stack(tags)),
    )


def train_tower(
    pictures: Pictures, folder: Path, minutes: float, seed: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """Train the tower, or continue; returns the float32 weights of `CLIPVisionModel`."""
    torch.manual_seed(seed)
    model = LabelledTower()
    trainer = Trainer(model, minutes * 60)
    checkpoint = folder / "tower.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    held_out = _held_out()
    order = np.random.default_rng([seed, trainer.steps])
    while trainer.progress < 1:
        rows = np.sort(order.choice(len(pictures), size=64, replace=False))
        patches, scores = model(as_input(pictures.pixels[rows]))
        losses = patch_losses(patches, torch.from_numpy(pictures.labels[rows]), FIELDS)
        tags = torch.from_numpy(pictures.tags[rows]).float()
        shown = F.binary_cross_entropy_with_logits(scores, tags) * 4
        trainer.step(sum(losses, shown))
        if trainer.steps % 50 == 0 or trainer.progress >= 1:
            save_state(checkpoint, trainer.state())
            log(f"tower {trainer.steps} {trainer.spent:.0f}s {_measure(model, *held_out)}")
    prefix = "tower."
    return {
        name.removeprefix(prefix): value
        for name, value in full_weights(trainer).items()
        if name.startswith(prefix)
    }
