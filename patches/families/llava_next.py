"""LLaVA-NeXT: an overview and a grid of tiles per image, with a newline after every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.ops.host_copies import on_cpu
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.vision_encoders_tiles import TileEncoder
from vlmcompress.tokens import Grid, Layout, Separator


class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`.

    The tiles are joined and cut to the shape of the image before the decoder sees them, so they
    are one grid. Newlines stay with their rows.
    """

    name = "llava_next"
    class_name = "LlavaNextForConditionalGeneration"
    encoder = TileEncoder()
    stages = ("encoder", "projector", "decoder")

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        newline: Any = self.base(model).get_parameter("image_newline")
        # Newlines are copies of one vector: counted for all images with one wait for the device.
        found = [(tokens == newline.to(tokens)).all(-1).sum() for tokens in features]
        counts = [int(one) for one in on_cpu(found)]
        return [
            with_newlines(len(tokens), rows, side(model))
            for tokens, rows in zip(features, counts, strict=True)
        ]

    def largest_image(self, model: nn.Module) -> int | None:
        if self.video:
            return None  # clips may be of any length
        config: Any = model.config
        patch = int(config.vision_config.patch_size)
        tiles = [(h // patch) * (w // patch) for h, w in config.image_grid_pinpoints]
        return int(side(model) ** 2 + max(tiles))

    def image_grid_of_tile(
        self, model: nn.Module, modality: str, call: Mapping[str, Any], tile: Grid
    ) -> Grid | None:
        if modality == "video":
            raise UnsupportedCallError(
                f"{self.name} pools the patches of clips, so encoder-stage methods take images only"
            )
        return None


def side(model: nn.Module) -> int:
    """Patches along each side of what the vision tower sees."""
    vision: Any = model.config.vision_config  # type: ignore[union-attr]
    return int(vision.image_size // vision.patch_size)


def with_newlines(count: int, rows: int, side: int) -> Layout:
    """Tell newlines from visual tokens.

    Args:
        count: tokens of an image: the overview, then the rows of the image, each with a newline at
            its end; or only the overview and one newline. A picture that is 72 times as wide as
            high, or as high as wide, leaves the tiles without a row, or the rows without a patch.
        rows: how many of them are newlines.
        side: of the overview.
    """
    rest = count - side * side
    width = rest // max(rows, 1) - 1
    if width < 1:
        return Layout((Grid(1, side, side),), tuple(_of_overview(rows, side)))
    starts = [side * side + row * width for row in range(rows)]
    separators = (
        Separator(start + width + row, start, start + width) for row, start in enumerate(starts)
    )
    return Layout((Grid(1, side, side), Grid(1, rows, width)), tuple(separators))


def _of_overview(rows: int, side: int) -> Iterator[Separator]:
    """Newlines of rows without a patch: each stays with the overview's row at its height."""
    for row in range(rows):
        first, after = row * side // rows, max(row * side // rows + 1, (row + 1) * side // rows)
        yield Separator(side * side + row, first * side, after * side)
