"""Banners and strips: pictures so long that a tile is left with no row, or rows with no patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import last_logits
from oracle import TOLERANCE, left, oracle
from subject_models import CLIP, IMAGE, LLAMA, QWEN2, SIGLIP, VIDEO, build
from subjects import Subject

from vlmcompress.api import compress
from vlmcompress.patches.families.registry import FAMILIES

FAMILY = {
    "LlavaNext": (CLIP, LLAMA),
    "LlavaNextVideo": (CLIP, LLAMA),
    "LlavaOnevision": (SIGLIP, QWEN2),
}
SIZES = {
    "a banner": (1, 400),
    "a strip": (400, 1),
    "just a row": (3, 100),
    "just a column": (100, 3),
}


def model_of(name: str) -> Any:
    tower, text = FAMILY[name]
    video = {} if name == "LlavaNext" else {"video_token_index": VIDEO}
    pinpoints = [[16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]
    tower = tower | {"image_size": 16}
    settings = {"image_token_index": IMAGE, "image_grid_pinpoints": pinpoints} | video
    return build(name, vision_config=tower, text_config=text, **settings)


def subject_of(name: str, size: tuple[int, int]) -> Subject:
    """Tiles as the model counts them, separators as the model's own packing places them."""
    model = model_of(name)
    tiles = 5  # an overview, and as many as any size takes
    pixels = torch.randn(1, tiles, 3, 16, 16)
    sizes = torch.tensor([size])
    with torch.no_grad():
        features = model.model.get_image_features(pixels, sizes).pooler_output
    (layout,) = FAMILIES.get(model.config.model_type)().layouts(model, "image", features, {})
    newline = (features[0] == model.model.image_newline).all(-1)
    assert [s.place for s in layout.separators] == newline.nonzero()[:, 0].tolist()
    assert layout.placeholders == len(features[0])
    ends = tuple((s.place, s.start, s.stop) for s in layout.separators)
    return Subject(
        model,
        IMAGE,
        len(layout),
        (tiles, 3, 16, 16),
        reserved=(VIDEO,),
        separators=ends,
        extra={"image_sizes": list(size)},
    )


@pytest.mark.parametrize("method", ["divprune", "pool", "fastv", "divprune+fastv"])
@pytest.mark.parametrize("size", list(SIZES.values()), ids=list(SIZES))
@pytest.mark.parametrize("name", list(FAMILY))
def test_law_1_and_2(name, size, method):
    subject = subject_of(name, size)
    inputs = subject.batch(subject.prompt(1, 3), subject.prompt(2, 4, text=9))
    bare = last_logits(subject, inputs)
    with compress(subject.model, method, budget="100%"):
        assert torch.equal(last_logits(subject, inputs), bare)
    with compress(subject.model, method, budget="60%") as c:
        short = last_logits(subject, inputs)
    report = c.report()
    for image in report.images:
        ends = [len(left(subject, image, layer)[1]) for layer in range(subject.layers)]
        assert image.separators == ends
    assert (short - oracle(report, subject, inputs)).abs().max() < TOLERANCE
    assert (short - bare).abs().max() > 100 * TOLERANCE


def test_what_the_sizes_are_about():
    banner, strip = (subject_of("LlavaNext", SIZES[size]) for size in ("a banner", "a strip"))
    # No row is left of the tiles, so no newline; rows are left that hold nothing but a newline.
    assert (banner.tokens_per_image, len(banner.separators)) == (16, 0)
    assert (strip.tokens_per_image, len(strip.separators)) == (16, 4)
    # Those go with the row of the overview at their height.
    newlines = banner.model.model.image_newline.expand(12, -1)
    tokens = torch.cat([torch.randn(16, newlines.shape[1]), newlines])
    (layout,) = FAMILIES.get("llava_next")().layouts(banner.model, "image", [tokens], {})
    ends = [(4 * row, 4 * row + 4) for row in range(4) for _ in range(3)]
    assert [(s.start, s.stop) for s in layout.separators] == ends
    assert [s.place for s in layout.separators] == list(range(16, 28))
