"""Models that cut a picture into tiles, as small as they can be, and sizes of pictures for them."""

from __future__ import annotations

from typing import Any

from subject_models import CLIP, IMAGE, LLAMA, QWEN2, SIGLIP, VIDEO, build

SIZES = {
    "a wide image": (16, 30),
    "a tall image": (40, 12),
    "a square image": (33, 33),
    "a small image": (5, 9),
    "an image as wide as all tiles": (64, 64),
}
TILED = {
    "LlavaNext": (CLIP, LLAMA, [[16, 32], [32, 16], [32, 32], [48, 16]]),
    "LlavaNextVideo": (CLIP, LLAMA, [[16, 32], [32, 16], [32, 32], [48, 16]]),
    # Sixteen tiles are more than OneVision shows: it shrinks what they make up.
    "LlavaOnevision": (SIGLIP, QWEN2, [[16, 32], [48, 16], [64, 64]]),
}


def tiled(name: str) -> Any:
    tower, text, pinpoints = TILED[name]
    video = {} if name == "LlavaNext" else {"video_token_index": VIDEO}
    tower = tower | {"image_size": 16}
    return build(
        name,
        vision_config=tower,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=pinpoints,
        **video,
    )
