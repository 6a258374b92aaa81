"""The small LLaVA: its words, processor and configuration, and the start from tiny-llava."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from dev.training.llava import model as tiny
from dev.training.llava.model import make_config, make_processor
from vlmcompress.eval.worlds.posters.poster import ICONS, IMAGE_SIZE
from vlmcompress.eval.worlds.posters.questions import NUMBERS, PLURALS

_MORE = (
    "bar bars high height highest lowest first second third fourth under next to code figure "
    "figures icon chart"
)


def vocabulary() -> list[str]:
    """The words of tiny-llava with their ids, then the further ones."""
    plurals = [PLURALS[icon] for icon in ICONS]
    words = [*tiny.vocabulary(), *_MORE.split(), *NUMBERS, *ICONS, *plurals]
    return list(dict.fromkeys(words))


IDS = {word: number for number, word in enumerate(vocabulary())}


def small_config() -> LlavaConfig:
    """As tiny-llava, for pictures of 192x192 pixels and more words."""
    return make_config(vocabulary(), IMAGE_SIZE)


def small_processor() -> LlavaProcessor:
    """As that of tiny-llava."""
    return make_processor(vocabulary(), IMAGE_SIZE)


@dataclass(frozen=True)
class Halved:
    """Saves the weights of a model in half precision, from which it loads as float32 again."""

    model: Any

    def save_pretrained(self, folder: Path) -> None:
        """As that of transformers; the configuration goes on to say float32."""
        state = {name: value.half() for name, value in self.model.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=state)


def tiny_weights(folder: Path) -> dict[str, Tensor]:
    """The state of tiny-llava in `folder`, float32."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def start_tower(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The tower of tiny-llava for `side` x `side` patches: its table of positions is stretched.

    Args:
        weights: Of `tiny_weights`.
        side: Patches along an edge.
    """
    tower = part(weights, "model.vision_tower.")
    name = "embeddings.position_embedding.weight"
    first, table = tower[name][:1], tower[name][1:]
    old = round(len(table) ** 0.5)
    grid = table.T.reshape(1, -1, old, old)
    grown = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
    tower[name] = torch.cat([first, grown[0].flatten(1).T])
    return tower


def start_decoder(model: Any, weights: dict[str, Tensor]) -> None:
    """Give a model the projector, the decoder and the words of tiny-llava.

    A figure begins as an object, a new plural as its singular, moved as known plurals are.

    Args:
        model: `LlavaForConditionalGeneration` of `small_config`, changed in place.
        weights: Of `tiny_weights`.
    """
    name = "model.language_model.embed_tokens.weight"
    known = {
        key: value
        for key, value in weights.items()
        if key != name and not key.startswith(("model.vision_tower.", "lm_head."))
    }
    model.load_state_dict(known, strict=False)
    words = model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        words[: len(weights[name])] = weights[name]
        pairs = [(IDS[one], IDS[many]) for one, many in PLURALS.items()]
        old = [pair for pair in pairs if pair[1] < len(weights[name])]
        step = torch.stack([words[many] - words[one] for one, many in old]).mean(0)
        for one, many in set(pairs) - set(old):
            words[many] = words[one] + step
        for new, like in (("figure", "object"), ("figures", "objects")):
            words[IDS[new]] = words[IDS[like]]
