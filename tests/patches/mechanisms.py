"""One subject for each way in which a model treats its visual tokens: the laws' default tier."""

from __future__ import annotations

MECHANISMS = {
    "random llava": "one grid an image, one number a position",
    "random llava-next": "tiles of one image, separators after each row",
    "random video-llava with clips": "frames of one clip, a separator before each",
    "random qwen2.5-vl": "positions with three axes",
    "random qwen3-vl with clips": "words between frames, features added in later layers",
    "random idefics3": "tiles behind markers",
    "random gemma3": "images that attend to themselves, sliding windows",
    "random mistral3": "pictures of their own sizes, packed for the encoder",
}
"""Subject -> what it does and no other before it. Experts are none: they meet single tokens."""
