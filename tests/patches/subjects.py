"""What the seven laws are tested on: a model, and prompts of random text and images for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Prompt = tuple[list[int], torch.Tensor]


@dataclass
class Subject:
    """A model whose images are one grid each, every placeholder a visual token."""

    model: Any
    image_token: int
    tokens_per_image: int
    pixel_shape: tuple[int, ...]
    """Of one image."""
    vocabulary: range = range(3, 90)
    pad: int = 0
    reserved: tuple[int, ...] = ()
    """Further tokens that stand for pictures."""
    separators: tuple[tuple[int, int, int], ...] = ()
    """Of one image: the placeholder, and the visual tokens from and to which it belongs."""
    frames: int = 1
    extra: dict[str, Any] | None = None
    """Further inputs, one row for each image."""
    modality: str = "image"
    lm_name: str = "language_model"
    window: int | None = None
    """Of sliding layers."""
    pixels: str = "pixel_values"
    """What the model calls its pictures."""
    repeats: bool = True
    """Whether the bare model can generate several sequences; some versions cannot for clips."""

    @property
    def lm(self) -> Any:
        return getattr(self.model.model, self.lm_name)

    @property
    def layers(self) -> int:
        return len(self.lm.layers)

    @property
    def placeholders(self) -> int:
        """Tokens of one image in a prompt."""
        return self.tokens_per_image + len(self.separators)

    def image(self) -> list[int]:
        """Token ids of one image."""
        return [self.image_token] * self.placeholders

    def prompt(self, images: int, seed: int, text: int = 6) -> Prompt:
        """Token ids with `images` images and their pixels."""
        g = torch.Generator().manual_seed(seed)

        def words(n: int) -> list[int]:
            picks = torch.randint(len(self.vocabulary), (n,), generator=g)
            return [self.vocabulary[int(i)] for i in picks]

        ids = words(3)
        for _ in range(images):
            ids += self.image() + words(2)
        ids += words(text)
        return ids, torch.randn(images, *self.pixel_shape, generator=g).to(self.model.dtype)

    def batch(self, *prompts: Prompt) -> dict[str, torch.Tensor]:
        """Inputs of a batch, padded on the left."""
        width = max(len(ids) for ids, _ in prompts)
        rows = [[self.pad] * (width - len(ids)) + ids for ids, _ in prompts]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in prompts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        inputs |= self.types(inputs["input_ids"])
        return inputs | self.images([pixels for _, pixels in prompts])

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model wants to know of each token besides its id."""
        return {}

    def images(self, pixels: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the model wants for the images of some prompts, nothing for none."""
        joined = torch.cat(list(pixels))
        if len(joined) == 0:
            return {}
        name = self.pixels if self.modality == "image" else "pixel_values_videos"
        rows = {n: torch.tensor([row] * len(joined)) for n, row in (self.extra or {}).items()}
        return {name: self.stack(joined)} | rows

    def stack(self, pixels: torch.Tensor) -> torch.Tensor:
        """[images, ...] as the model takes them."""
        return pixels

    def encode(self, inputs: dict[str, torch.Tensor]) -> Any:
        """What the bare model's feature call returns."""
        names = {self.pixels, "pixel_values_videos", *(self.extra or {})}
        given = {name: value for name, value in inputs.items() if name in names}
        base = self.model.model
        call = base.get_video_features if self.modality == "video" else base.get_image_features
        return call(**given)

    def features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[images, placeholders, D] from the bare model."""
        found = torch.cat([piece.flatten(0, -2) for piece in self.encode(inputs).pooler_output])
        return found.view(-1, self.placeholders, found.shape[-1])

    def columns(self, line: torch.Tensor) -> list[torch.Tensor]:
        """Per image of a prompt [L]: the columns of all its placeholders."""
        return list((line == self.image_token).nonzero()[:, 0].split(self.placeholders))

    def visual(self, placeholders: torch.Tensor) -> torch.Tensor:
        """Those of the placeholders [P, ...] of one image that are visual tokens [N, ...]."""
        ends = [place for place, _, _ in self.separators]
        return placeholders[[i for i in range(self.placeholders) if i not in ends]]

    def slides(self, layer: int) -> bool:
        """Whether a layer sees a window of its input only."""
        return self.window is not None and "sliding" in self.lm.config.layer_types[layer]

    def allowed(self, inputs: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
        """[B, L, L] or [L, L] bool: which keys each query of a layer may see, padding aside."""
        length = inputs["input_ids"].shape[1]
        return torch.ones(length, length, dtype=torch.bool).tril()

    def lm_inputs(
        self, inputs: dict[str, torch.Tensor], groups: list[dict[int, list[int]]]
    ) -> dict[str, Any]:
        """Further inputs of the bare decoder, `groups` of each image merged at their places."""
        return {}

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of the whole prompt."""
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """Six new tokens, never a placeholder (those would ask for image features)."""
        options = {"do_sample": False, "max_new_tokens": 6, **options}
        return self.model.generate(
            **inputs,
            suppress_tokens=sorted({self.image_token, *self.reserved}),
            eos_token_id=None,
            pad_token_id=self.pad,
            **options,
        )


class TileSubject(Subject):
    """The encoder is given tiles, one after the other."""

    def stack(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(0, 1)


class MarkedTileSubject(Subject):
    """Each tile follows a marker, an overview comes last; rows with fewer tiles are filled up."""

    tile, overview = 95, 94

    def image(self) -> list[int]:
        tiles = self.pixel_shape[0]
        piece = [self.image_token] * (self.tokens_per_image // tiles)
        return [*([self.tile, *piece] * (tiles - 1)), self.overview, *piece]

    def images(self, pixels: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = [each.flatten(0, 1) for each in pixels]
        most = max(map(len, rows))
        if most == 0:
            return {}
        filled = [torch.cat([row, row.new_zeros(most - len(row), *row.shape[1:])]) for row in rows]
        return {"pixel_values": torch.stack(filled)}


class QwenSubject(Subject):
    """Images of 12x12 patches, merged 2x2; positions with three axes."""

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        kind = 1 if self.modality == "image" else 2
        return {"mm_token_type_ids": (ids == self.image_token).long() * kind}

    def images(self, pixels: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.extra = {f"{self.modality}_grid_thw": [self.frames, 12, 12]}
        return super().images(pixels)

    def stack(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(0, 1)

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        name = f"{self.modality}_grid_thw"
        if name not in inputs:
            return super().positions(inputs)
        found: torch.Tensor = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=self.types(inputs["input_ids"])["mm_token_type_ids"].int(),
            attention_mask=inputs["attention_mask"],
            **{name: inputs[name]},
        )[0]
        return found


class DeepStackSubject(QwenSubject):
    """Features of several ViT layers enter the first decoder layers; words between frames."""

    def image(self) -> list[int]:
        frame = [self.image_token] * (self.tokens_per_image // self.frames)
        return (
            frame if self.frames == 1 else [i for t in range(self.frames) for i in (5 + t, *frame)]
        )

    def lm_inputs(
        self, inputs: dict[str, torch.Tensor], groups: list[dict[int, list[int]]]
    ) -> dict[str, Any]:
        if not groups:
            return {}
        added = [torch.cat(layer) for layer in self.encode(inputs).deepstack_features]
        for features in added:
            for image, mine in zip(features.split(self.tokens_per_image), groups, strict=True):
                before = image.clone()
                for place, group in mine.items():
                    image[place] = before[group].mean(0)
        visual = inputs["input_ids"] == self.image_token
        return {"visual_pos_masks": visual, "deepstack_visual_embeds": added}


class BidirectionalSubject(Subject):
    """The tokens of an image attend to one another; some layers see a sliding window."""

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (ids == self.image_token).long()}

    def allowed(self, inputs: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
        ids = inputs["input_ids"]
        visual = ids == self.image_token
        first = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        image = torch.where(visual, first.cumsum(1), 0)
        same = (image[:, :, None] == image[:, None]) & visual[:, None]
        seen = super().allowed(inputs, layer) | same
        if self.slides(layer):
            place = torch.arange(ids.shape[1])
            seen = seen & (place[:, None] - place < self.window)
        return seen
