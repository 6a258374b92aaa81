"""One prompt shortened twice: by `compress` in process, and as the plug-in of vLLM shortens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from subject_models import SUBJECTS
from subjects import Subject
from torch import Tensor

import vlmcompress
from vlmcompress.serving.counts import ItemPlan, plan, with_texts
from vlmcompress.serving.keeping import chosen, left
from vlmcompress.serving.settings import Settings
from vlmcompress.serving.vllm.families import FAMILIES
from vlmcompress.tokens import Layout


@dataclass
class Prompt:
    """Inputs of a model, and where the placeholders of each picture or clip are."""

    subject: Subject
    inputs: dict[str, Tensor]
    runs: list[Tensor]
    """[P] int64 each: columns, text between frames among them."""

    @classmethod
    def of(cls, name: str, images: int) -> Prompt:
        """Of a subject of tests/patches."""
        subject = SUBJECTS[name]()
        inputs = subject.batch(subject.prompt(images, seed=3))
        columns = subject.columns(inputs["input_ids"][0])
        whole = [torch.arange(int(own[0]), int(own[-1]) + 1) for own in columns]
        return cls(subject, inputs, whole)

    @classmethod
    def of_sizes(cls, name: str, sizes: Sequence[tuple[int, int]]) -> Prompt:
        """Pictures of several sizes, height first, for a model that cuts them into tiles."""
        subject = SUBJECTS[name]()
        config, base = subject.model.config, subject.model.model
        side = config.vision_config.image_size
        highest = max(h * w for h, w in config.image_grid_pinpoints) // side**2
        g = torch.Generator().manual_seed(1)
        given = {
            "pixel_values": torch.randn(len(sizes), 1 + highest, 3, side, side, generator=g),
            "image_sizes": torch.tensor(sizes),
        }
        with torch.no_grad():
            features = base.get_image_features(**given).pooler_output
        ids, runs = [5, 6, 7], []
        for own in features:
            runs.append(torch.arange(len(ids), len(ids) + len(own)))
            ids += [subject.image_token] * len(own) + [8, 9]
        lines = torch.tensor([ids])
        given |= {"input_ids": lines, "attention_mask": torch.ones_like(lines)}
        return cls(subject, given, runs)

    @property
    def family(self) -> Any:
        return FAMILIES[type(self.subject.model).__name__]()

    def layouts(self) -> Iterator[tuple[Layout, tuple[int, ...]]]:
        """As the front end of vLLM finds them, and the text between frames."""
        subject, config = self.subject, self.subject.model.config
        for number, run in enumerate(self.runs):
            ids = self.inputs["input_ids"][0, run]
            visual = ids == subject.image_token
            item = {
                name: values[number]
                for name, values in self.inputs.items()
                if "size" in name or "grid" in name
            }
            found = self.family.layout(config, subject.modality, item, int(visual.sum()))
            mixed = subject.modality in self.family.interleaved
            yield with_texts(found, ids.tolist(), visual.tolist()) if mixed else (found, ())

    @contextmanager
    def seen(self) -> Iterator[dict[str, Tensor]]:
        """What the decoder is given in the next call."""
        found: dict[str, Tensor] = {}

        def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            found["embeds"] = kwargs["inputs_embeds"][0]
            places = kwargs.get("position_ids")
            length = len(found["embeds"])
            places = torch.arange(length)[None] if places is None else places.view(-1, length)
            found["positions"] = places[-3:]  # Qwen has a row for text before the three axes

        hook = self.subject.lm.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield found
        finally:
            hook.remove()

    @cached_property
    @torch.no_grad()
    def whole(self) -> dict[str, Tensor]:
        """What the bare model's decoder is given."""
        with self.seen() as found:
            self.subject.model(**self.inputs)
        return found

    @torch.no_grad()
    def compressed(self, method: str, budget: Any) -> dict[str, Tensor]:
        """What it is given under `compress`."""
        with vlmcompress.compress(self.subject.model, method, budget), self.seen() as found:
            self.subject.model(**self.inputs)
        return found

    def plans(self, method: str, budget: Any) -> list[ItemPlan]:
        """Made in the front end of vLLM."""
        settings = Settings(method, str(budget))
        return [plan(settings, layout, (), texts) for layout, texts in self.layouts()]

    @torch.no_grad()
    def served(self, method: str, budget: Any) -> dict[str, Tensor]:
        """What vLLM's decoder is given; "lone" are newlines of rows that keep no token."""
        whole = self.whole
        lone = torch.zeros(len(whole["embeds"]), dtype=torch.bool)
        embeds, stay = whole["embeds"].clone(), torch.ones(len(whole["embeds"]), dtype=torch.bool)
        for run, own in zip(self.runs, self.plans(method, budget), strict=True):
            features = embeds[run]
            assert own.given == len(run)
            if own.keep >= own.given:
                continue
            visual = features[own.layout.visual]
            kept = chosen(own, visual, features.shape[1], {})
            features, places = left(own, features, *kept)
            assert len(features) == own.keep
            stay[run] = False
            stay[run[places]] = True
            embeds[run[places]] = features
            lone[run[_lone(own.layout, kept[0].tolist())]] = True
        positions = whole["positions"][:, stay]
        return {"embeds": embeds[stay], "positions": positions, "lone": lone[stay]}


def _lone(layout: Layout, kept: Sequence[int]) -> list[int]:
    """Places of the separators without any kept token in their rows, one by one."""
    return [
        one.place
        for one in layout.separators
        if not any(one.start <= token < one.stop for token in kept)
    ]
