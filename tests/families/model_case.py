"""A tiny model of one type, and prompts with pictures for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from media import pictures
from shrink import PLACEHOLDERS, build
from split_media import of_prompt
from torch import Tensor

from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.shapes import pieces_of, shapes_of

TYPE_IDS = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")
Inputs = dict[str, Any]


class Case:
    """Prompts of one picture each: random words, the placeholders, more words."""

    features_of = "get_image_features"
    """The feature call of the base model."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.model = build(model_type)
        self.parts = ModelParts.of(self.model)
        self.token = self.parts.family.placeholders(self.model)["image"]
        self.media = pictures(self.model, self.parts.base, 2)
        self.sizes = self.counts(self.media)
        self.rows = [self._prompt(row, count) for row, count in enumerate(self.sizes)]
        self.both = self._batch(self.rows, self.media)
        self.alone = [
            self._batch([ids], of_prompt(self.media, row)) for row, ids in enumerate(self.rows)
        ]

    @property
    def single(self) -> Inputs:
        """One prompt."""
        return self.alone[0]

    @property
    def pair(self) -> Inputs:
        """One prompt with both pictures, of different sizes where the type takes such."""
        return self._batch([[*self.rows[0], *self.rows[1]]], self.media)

    @cached_property
    def bare(self) -> Tensor:
        """Logits of the bare model for `single`."""
        return self.logits(self.single)

    @cached_property
    def bare_both(self) -> Tensor:
        """Logits of the bare model for `both`."""
        return self.logits(self.both)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the decoder's layers as its configuration names them."""
        config: Any = self.parts.lm.config
        names = getattr(config, "layer_types", None) or ["full_attention"] * self.depth
        return tuple(names[: self.depth])

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return len(self.parts.layers)

    @property
    def first_cut(self) -> int:
        """The first layer that may drop tokens behind one with attention."""
        attends = (n for n, kind in enumerate(self.kinds) if _attends(kind))
        behind = next(attends, 0) + 1
        return behind if behind < self.depth else 1

    def counts(self, media: Inputs) -> list[int]:
        """Placeholders of each prompt."""
        base: Any = self.parts.base
        known = inspect.signature(base.get_image_features).parameters
        call = {name: value for name, value in media.items() if name in known}
        with torch.no_grad():
            output = base.get_image_features(**call, return_dict=True)
        features = self.parts.family.features(output)
        pieces = pieces_of(features, "image", call, shapes_of("image", call))
        return pieces if len(pieces) == 2 else [sum(pieces) // 2] * 2

    def _prompt(self, row: int, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(10 + row)

        def words(number: int) -> list[int]:
            found: list[int] = torch.randint(30, 180, (number,), generator=generator).tolist()
            return found

        start = self._special("vision_start_token_id", "image_start_token_id", "boi_token_id")
        end = self._special("vision_end_token_id", "image_end_token_id", "eoi_token_id")
        return words(4 + 3 * row) + start + [self.token] * count + end + words(6 + 2 * row)

    def _special(self, *names: str) -> list[int]:
        config: Any = self.model.config
        values = (getattr(config, name, None) for name in names)
        found = next((value for value in values if isinstance(value, int)), None)
        return [] if found is None else [found]

    def _batch(self, rows: list[list[int]], media: Inputs) -> Inputs:
        """Inputs of a batch, padded on the left."""
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        known = {
            name
            for module in (self.model, self.parts.base)
            for name in inspect.signature(module.forward).parameters
        }
        # Inkling's token types are no marks of pictures.
        wanted = known & set(TYPE_IDS) if not self.model_type.startswith("inkling") else set()
        types = {name: (ids == self.token).long() for name in sorted(wanted)}
        return {"input_ids": ids, "attention_mask": mask, **types, **media}

    @torch.no_grad()
    def logits(self, inputs: Inputs, **options: Any) -> Tensor:
        """Of a forward."""
        found: Tensor = self.model(**inputs, **options).logits
        return found

    @torch.no_grad()
    def generate(
        self, inputs: Mapping[str, Any], use_cache: bool = True, steps: int = 4, **options: Any
    ) -> Any:
        """A few tokens that are words, with their logits."""
        config: Any = self.parts.lm.config
        return self.model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
            suppress_tokens=list(range(PLACEHOLDERS - 10, config.vocab_size)),
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )


def _attends(kind: str) -> bool:
    return kind.endswith("attention") and kind != "linear_attention"


@lru_cache(maxsize=1)
def case_of(model_type: str) -> Case:
    """The case of a type; the laws of a type come one after the other."""
    return Case(model_type)
