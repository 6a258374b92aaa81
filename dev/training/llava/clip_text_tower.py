"""The text tower that matches the vision tower, for methods guided by the prompt.

The vision tower is the one of tiny-llava, unchanged. The text tower and both projections learn
that a question, or a phrase, is near the patches of the objects it is about, and that a list of
objects is near the CLS embedding of its picture.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from dev.training.llava.data import PATCHES, SIDE, Pictures
from dev.training.llava.model import make_image_processor, make_tokenizer, replace_folder
from dev.training.llava.packed_questions import IDS
from dev.training.llava.tower import FEATURE_LAYER, as_input, vision_config
from dev.training.optim import Trainer, describe, full_weights, save_state
from vlmcompress.eval.worlds.world import (
    HELD_OUT_SEEDS,
    IMAGE_SIZE,
    KINDS,
    PATCH_SIZE,
    PLACES,
    Scene,
    ask,
    make_scene,
    render,
)

_LENGTH = 32
_BATCH = 64
_PHRASES = 3
_HELD_OUT = 128


def make_clip_config(ids: Mapping[str, int] = IDS, image_size: int = IMAGE_SIZE) -> CLIPConfig:
    """The vision tower of tiny-llava, and a text tower of four layers."""
    return CLIPConfig(
        vision_config=vision_config(image_size).to_dict(),
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": _LENGTH,
            "hidden_act": "gelu",
            "projection_dim": 64,
            "pad_token_id": ids["<pad>"],
            "bos_token_id": ids["<s>"],
            "eos_token_id": ids["</s>"],
        },
        projection_dim=64,
    )


def make_clip_tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """The words of tiny-llava, or others; a text ends with `</s>`, whose state is its embedding."""
    from tokenizers import processors

    tokenizer = make_tokenizer(words)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", IDS["<s>"]), ("</s>", IDS["</s>"])],
    )
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = _LENGTH
    return tokenizer


class Matcher(nn.Module):
    """CLIP with a threshold for "this patch is what the text is about"."""

    def __init__(self, tower: dict[str, Tensor], config: CLIPConfig) -> None:
        """Build a CLIP around the trained `tower`."""
        super().__init__()
        self.clip = CLIPModel(config)
        self.clip.vision_model.load_state_dict(tower)
        self.clip.vision_model.requires_grad_(False)
        self.clip.set_attn_implementation("eager")
        self.threshold = nn.Parameter(torch.tensor(-0.3))

    @torch.no_grad()
    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """States of CLS, [B, WIDTH], and of the patches of two layers, [B, 2, N, WIDTH]."""
        vision = self.clip.vision_model
        out = vision(pixels, output_hidden_states=True)
        states = (out.hidden_states[FEATURE_LAYER], out.hidden_states[-1])
        patches = vision.post_layernorm(torch.stack([state[:, 1:] for state in states], dim=1))
        return out.pooler_output, patches

    def embed(self, shown: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of what `see` gives, [B, 64] and [B, 2, N, 64]."""
        project = self.clip.visual_projection
        return F.normalize(project(shown), dim=-1), F.normalize(project(patches), dim=-1)

    def read(self, tokens: Tensor) -> Tensor:
        """Unit embeddings of texts, [B, 64]."""
        config: Any = self.clip.config.text_config
        mask = torch.ne(tokens, config.pad_token_id).long()
        out = self.clip.text_model(input_ids=tokens, attention_mask=mask)
        return F.normalize(self.clip.text_projection(out.pooler_output), dim=-1)

    def losses(
        self, seen: tuple[Tensor, Tensor], texts: Tensor, about: Tensor, lists: Tensor
    ) -> Tensor:
        """Loss of phrases against patches and of object lists against pictures.

        Args:
            seen: Of `see`.
            texts: [B, phrases, length], token ids.
            about: [B, phrases, N], 1 where a phrase is about a patch.
            lists: [B, length], token ids of what each picture shows.
        """
        picture, patches = self.embed(*seen)
        phrases = self.read(texts.flatten(0, 1)).reshape(*texts.shape[:2], -1)
        alike = torch.einsum("blnd,bpd->bpln", patches, phrases).float()
        scores = (alike + self.threshold.float()) * self.clip.logit_scale.float().exp()
        wanted = about[:, :, None].expand_as(scores)
        each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        dense = each[wanted > 0].mean() + each[wanted == 0].mean()
        match = (picture @ self.read(lists).T).float() * self.clip.logit_scale.float().exp()
        own = torch.arange(len(match))
        return dense * 2 + F.cross_entropy(match, own) + F.cross_entropy(match.T, own)


def clip_tokens(texts: Sequence[str], ids: Mapping[str, int] = IDS) -> Tensor:
    """Token ids of texts, [len(texts), 32], as the tokenizer gives them."""
    rows = np.full((len(texts), _LENGTH), ids["<pad>"])
    for row, text in enumerate(texts):
        words = ["<s>", *text.split(), "</s>"]
        rows[row, : len(words)] = [ids[word] for word in words]
    return torch.from_numpy(rows)


def _phrase(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A text and the indices of the objects that it is about."""
    if rng.random() < 0.5:
        question = ask(scene, KINDS[int(rng.integers(len(KINDS)))], rng)
        if question is not None and question.about:
            return question.text, question.about
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    choices = [("name", thing.name), ("shape", thing.shape), ("color", thing.color)]
    choices.append(("place", thing.place))
    if thing.glyph is not None:
        choices.append(("glyph", thing.glyph))
    field, text = choices[int(rng.integers(len(choices)))]
    about = [i for i, other in enumerate(scene.objects) if getattr(other, field) == text]
    if field in ("name", "shape") and rng.random() < 0.5:
        text = f"a {text}"
    elif field == "color" and rng.random() < 0.5:
        text = f"{text} objects"
    return text, tuple(about)


def _list(scene: Scene, rng: np.random.Generator) -> str:
    chosen = rng.permutation(len(scene.objects))[:6]
    return " , ".join(scene.objects[int(index)].name for index in chosen)


def _covered(labels: np.ndarray, scene: Scene, about: tuple[int, ...]) -> np.ndarray:
    """Patches of the objects `about`, [144]; objects never share a place."""
    places = [PLACES.index(scene.objects[index].place) + 1 for index in about]
    mask = np.isin(labels[4], places)
    for index in about:
        thing = scene.objects[index]
        mask[int(thing.y) // PATCH_SIZE * SIDE + int(thing.x) // PATCH_SIZE] = True
    return mask.astype(np.float32)


def _batch(pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, ...]:
    texts, masks, lists = [], np.zeros((len(rows), _PHRASES, PATCHES), dtype=np.float32), []
    for row, seed in enumerate(rows):
        scene = make_scene(int(seed))
        for column in range(_PHRASES):
            text, about = _phrase(scene, rng)
            texts.append(text)
            masks[row, column] = _covered(pictures.labels[seed], scene, about)
        lists.append(_list(scene, rng))
    tokens = clip_tokens(texts).reshape(len(rows), _PHRASES, _LENGTH)
    return as_input(pictures.pixels[rows]), tokens, torch.from_numpy(masks), clip_tokens(lists)


@torch.no_grad()
def _measure(model: Matcher) -> dict[str, float]:
    """Held-out: list retrieval among 128 pictures, and how often the best patch is a right one."""
    scenes = [make_scene(seed) for seed in HELD_OUT_SEEDS[:_HELD_OUT]]
    rng = np.random.default_rng(0)
    looked = [
        model.embed(
            *model.see(as_input(np.stack([render(one)[0] for one in scenes[start : start + 64]])))
        )
        for start in range(0, _HELD_OUT, 64)
    ]
    pictures, patches = (torch.cat(parts) for parts in zip(*looked, strict=True))
    match = model.read(clip_tokens([_list(scene, rng) for scene in scenes])) @ pictures.T
    figures = {"retrieval": (match.argmax(-1) == torch.arange(_HELD_OUT)).float().mean().item()}
    named = [scene.objects[0] for scene in scenes]
    phrases = model.read(clip_tokens([f"a {thing.name}" for thing in named]))
    best = torch.einsum("blnd,bd->bln", patches, phrases).argmax(-1)
    for layer, name in enumerate(("patch", "last_patch")):
        hits = []
        for scene, thing, patch in zip(scenes, named, best[:, layer].tolist(), strict=True):
            cell = patch // SIDE // 4 * 3 + patch % SIDE // 4
            names = {PLACES.index(o.place) for o in scene.objects if o.name == thing.name}
            hits.append(cell in names)
        figures[name] = float(np.mean(hits))
    return figures


def train_clip(
    tower: dict[str, Tensor],
    pictures: Pictures,
    folder: Path,
    minutes: float,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Train the text tower, or continue; returns the float32 state of `CLIPModel`."""
    torch.manual_seed(seed)
    model = Matcher(tower, make_clip_config())
    trainer = Trainer(model, minutes * 60)
    checkpoint = folder / "clip.pt"
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint))
    rng = np.random.default_rng([seed, 2, trainer.steps])
    while trainer.progress < 1:
        rows = np.sort(rng.choice(len(pictures), size=_BATCH, replace=False))
        pixels, *texts = _batch(pictures, rows, rng)
        loss = model.losses(model.see(pixels), *texts)
        trainer.step(loss)
        if trainer.steps % 100 == 0 or trainer.progress >= 1:
            save_state(checkpoint, trainer.state())
            figures = {"loss": loss.item()} | _measure(model)
            log(f"clip {trainer.steps} {trainer.spent:.0f}s {describe(figures.items())}")
    return clip_weights(trainer, tower)


def clip_weights(trainer: Trainer, tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 state of `CLIPModel`."""
    weights = {
        name.removeprefix("clip."): value
        for name, value in full_weights(trainer).items()
        if name.startswith("clip.")
    }
    return weights | {f"vision_model.{name}": value for name, value in tower.items()}


def export_clip(
    weights: dict[str, Tensor],
    folder: Path,
    words: Sequence[str] | None = None,
    image_size: int = IMAGE_SIZE,
    wrap: Callable[[Any], Any] = lambda model: model,
) -> None:
    """Write the CLIP folder, `wrap` of the model, tokenizer and image processor."""
    ids = {word: number for number, word in enumerate(words)} if words else IDS
    model: Any = CLIPModel(make_clip_config(ids, image_size))
    model.load_state_dict(weights)
    processor = CLIPProcessor(make_image_processor(image_size), make_clip_tokenizer(words))
    replace_folder(folder, wrap(model), processor)
