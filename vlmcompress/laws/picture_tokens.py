"""Where pictures are in a prompt, found without an adapter: where other pixels change something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.report.report import Report
from vlmcompress.tokens import Layout


class MisplacedError(VLMCompressError):
    """What the adapter says of the pictures does not go together with the prompt."""


@dataclass(frozen=True, eq=False)
class PictureTokens:
    """The columns of a batch that are picture."""

    embeddings: Tensor
    """[B, L, D] that enter the decoder."""
    depends: Tensor
    """[B, L] bool, on the CPU: whose embedding depends on the pixels."""
    placeholders: Tensor
    """[B, L] bool, on the CPU: all that stand for a picture; separators depend on nothing."""
    ids: list[int]
    """The tokens of these."""
    given: Tensor
    """[B, L] bool, on the CPU: what is no padding."""

    @classmethod
    def of(cls, parts: ModelParts, inputs: Mapping[str, Any]) -> PictureTokens:
        """Compare the embeddings of the prompts with those for other pixels."""
        ids = inputs["input_ids"].cpu()
        embeddings = embeddings_of(parts, inputs)
        other = embeddings_of(parts, {**inputs, **other_pixels(inputs)})
        depends = (embeddings != other).any(-1).cpu()
        # More often than not: a word next to a picture may notice it, too.
        tokens = [
            t for t in ids[depends].unique().tolist() if depends[ids == t].float().mean() > 0.5
        ]
        mask = inputs.get("attention_mask")
        given = torch.ones_like(depends) if mask is None else mask.cpu().bool()
        placeholders = torch.isin(ids, torch.tensor(tokens)) & given
        return cls(embeddings, depends, placeholders, tokens, given)

    def columns(self, row: int) -> Tensor:
        """[P] int64: the placeholders of a row."""
        return self.placeholders[row].nonzero()[:, 0]

    def placed(self, layouts: Sequence[tuple[int, Layout]]) -> list[Tensor]:
        """The columns of the placeholders of each picture.

        Args:
            layouts: row and layout of each, in the order of the prompts.

        Raises:
            MisplacedError: a row has more or fewer.
        """
        left = {row: self.columns(row) for row in range(len(self.given))}
        placed = []
        for row, layout in layouts:
            mine, left[row] = left[row].tensor_split([layout.placeholders])
            placed.append(mine)
        for row, rest in left.items():
            said = sum(layout.placeholders for where, layout in layouts if where == row)
            found = len(self.columns(row))
            if said != found or len(rest):
                raise MisplacedError(
                    f"prompt {row} has {found} tokens of pictures, the adapter finds {said}"
                )
        return placed

    def keep(
        self, layouts: Sequence[tuple[int, Layout]], report: Report, depth: int
    ) -> list[Tensor]:
        """Per decoder layer [B, L] bool: what of the prompts enters it.

        Raises:
            MisplacedError: see `placed`.
        """
        keep = [self.given.clone() for _ in range(depth)]
        for image, (row, layout), mine in zip(
            report.images, layouts, self.placed(layouts), strict=True
        ):
            visual = layout.visual
            for layer, present in enumerate(keep):
                cuts = [kept for cut, kept in sorted(image.cuts.items()) if cut <= layer]
                kept = torch.tensor((cuts or [image.kept])[-1], dtype=torch.long)
                present[row, mine] = False
                present[row, mine[visual][kept]] = True
                for separator in layout.separators:
                    ends = ((kept >= separator.start) & (kept < separator.stop)).any()
                    present[row, mine[separator.place]] = ends
        return keep


@torch.no_grad()
def embeddings_of(parts: ModelParts, inputs: Mapping[str, Any]) -> Tensor:
    """[B, L, D]: what the decoder is given."""
    seen: list[Tensor] = []
    handle = parts.lm.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        parts.model(**inputs)
    finally:
        handle.remove()
    return seen[0]


def other_pixels(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The negative of the pictures, with noise, so that no two patches are alike."""
    found = {}
    for name, value in inputs.items():
        if "pixel_values" in name and torch.is_tensor(value) and value.is_floating_point():
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(value.shape, generator=generator)
            found[name] = noise.to(value) - value
    return found
