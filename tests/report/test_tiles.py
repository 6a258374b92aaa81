"""Tiles are drawn where the processor cut them out of the picture."""

from dataclasses import replace

import numpy as np
import pytest
from call_reports import report
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlmcompress.errors import VLMCompressError
from vlmcompress.report.overlay import draw
from vlmcompress.report.overlay.boxes import Box, part_boxes

SIDE = 56
TILES = {
    "internvl": GotOcr2ImageProcessorPil(
        crop_to_patches=True, size={"height": SIDE, "width": SIDE}, min_patches=1, max_patches=12
    ),
    "smolvlm": SmolVLMImageProcessorPil(
        do_image_splitting=True,
        size={"longest_edge": 4 * SIDE},
        max_image_size={"longest_edge": SIDE},
    ),
}


@pytest.mark.parametrize(
    ("name", "size", "columns", "rows"),
    [
        ("internvl", (300, 200), 3, 2),
        ("internvl", (200, 300), 2, 3),
        ("smolvlm", (300, 200), 4, 3),
        ("smolvlm", (100, 400), 1, 4),
    ],
)
def test_tiles_lie_in_rows_and_the_overview_comes_last(name, size, columns, rows):
    found = part_boxes(size, TILES[name], columns * rows + 1)
    width, height = size[0] / columns, size[1] / rows
    wanted = [
        (width * c, height * r, width * (c + 1), height * (r + 1))
        for r in range(rows)
        for c in range(columns)
    ]
    # The picture that tells places apart has 256 steps along each side.
    assert np.abs(np.array(found[:-1]) - wanted).max() < max(size) / 200
    assert np.abs(np.array(found[-1]) - (0, 0, *size)).max() < max(size) / 200


@pytest.mark.parametrize("kind", [LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil])
def test_joined_tiles_cover_the_picture_as_the_overview_does(kind):
    assert part_boxes((300, 200), kind(), 2) == [Box(0, 0, 300, 200)] * 2


def test_a_padded_tile_shows_no_padding_as_picture():
    def processor(images, return_tensors):
        pixels = np.zeros((2, 3, 4, 8))
        whole = np.asarray(images[0].resize((4, 4), Image.Resampling.BOX), float) / 255
        pixels[:, :, :, 2:6] = whole.transpose(2, 0, 1)
        return {"pixel_values": pixels}

    box, _ = part_boxes((80, 40), processor, 2)
    assert np.abs(np.array(box) - (-40, 0, 120, 40)).max() < 1


def test_the_drawn_tiles_are_bright_where_something_was_kept():
    size, parts = (300, 200), [(1, 2, 2)] * 7
    kept = [3, 8, 25]  # of tile 0 below right, of tile 2 above left, of the overview above right
    tiled = replace(report(kept, layers=1), parts=parts, grid=(1, 1, 28), before=28, given=28)
    page = np.asarray(draw([Image.new("RGB", size, "white")], [tiled], TILES["internvl"], side=300))
    overview, tiles = page[:200, :300], page[:200, 312:612]
    assert overview[50, 225].mean() > 250 > 150 > overview[50, 75].mean()
    light = tiles[25::50, 25::50].mean(-1) > 250
    assert {(int(r), int(c)) for r, c in np.argwhere(light)} == {(1, 1), (0, 4)}


def test_a_processor_that_cuts_otherwise_is_named():
    with pytest.raises(VLMCompressError, match="CLIPImageProcessorPil cuts it into 1 tiles"):
        part_boxes((300, 200), CLIPImageProcessorPil(), 3)

    def strips(images, return_tensors):
        return {"pixel_values": np.zeros((16, 12))}

    with pytest.raises(VLMCompressError, match=r"gives pixels of shape \[16, 12\]"):
        part_boxes((300, 200), strips, 3)
