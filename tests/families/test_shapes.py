"""Grids of pictures from sizes in any unit."""

import pytest
import torch

from vlmcompress.patches.families.shapes import grid_of, pieces_of, shapes_of
from vlmcompress.tokens import Grid


@pytest.mark.parametrize(
    ("count", "shape", "grid"),
    [
        (24, (1, 8, 12), Grid(1, 4, 6)),  # merged 2x2
        (96, (1, 8, 12), Grid(1, 8, 12)),
        (48, (2, 8, 12), Grid(2, 4, 6)),  # two steps of a clip
        (24, (2, 8, 12), Grid(1, 4, 6)),  # that were merged in time
        (15, (336, 560), Grid(1, 3, 5)),  # pixels
        (20, (100, 130), Grid(1, 4, 5)),  # the nearest where pixels were rounded
        (16, None, Grid(1, 4, 4)),
        (17, None, Grid(1, 1, 17)),
        (17, (8, 8), Grid(1, 1, 17)),  # separators among them: no grid is like the picture
        (16, (0, 8), Grid(1, 4, 4)),
    ],
)
def test_grid(count, shape, grid):
    assert grid_of(count, shape) == grid


def test_shapes_are_those_of_the_modality():
    call = {
        "pixel_values": torch.zeros(3, 2),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "image_grid_thw": torch.tensor([[1, 8, 12], [1, 4, 4]]),
    }
    assert shapes_of("image", call) == [[1, 8, 12], [1, 4, 4]]
    assert shapes_of("video", call) == [[2, 4, 4]]
    assert shapes_of("image", {"image_sizes": None}) == []
    assert shapes_of("image", {"image_grids": torch.ones(2, 4)}) == [None, None]


def test_pieces():
    assert pieces_of([torch.zeros(3, 2), torch.zeros(2, 4, 2)], "image", {}, []) == [3, 8]
    assert pieces_of(torch.zeros(2, 5, 3), "image", {}, []) == [5, 5]
    joined = torch.zeros(20, 3)
    assert pieces_of(joined, "image", {}, [[4, 4], [8, 8]]) == [4, 16]
    assert pieces_of(joined, "image", {"pixel_values": torch.zeros(2, 3)}, []) == [10, 10]
    assert pieces_of(joined, "image", {"pixel_values": torch.zeros(3, 3)}, []) == [20]
