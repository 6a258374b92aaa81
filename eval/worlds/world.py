"""The synthetic world that the built-in models are trained and measured on.

Pictures of 96x96 pixels with three to eight objects in a 3x3 grid of places, on textured
backgrounds with distractors; questions of seven kinds in two wordings. Seeds below one million
are for training, those of the second million are held out.
"""

from vlmcompress.eval.worlds.draw import draw, render
from vlmcompress.eval.worlds.questions import (
    KINDS,
    NUMBERS,
    PLURALS,
    WORDINGS,
    Question,
    ask,
    held_out,
)
from vlmcompress.eval.worlds.scene import (
    COLORS,
    GLYPHS,
    HELD_OUT_SEEDS,
    IMAGE_SIZE,
    PATCH_SIZE,
    PLACES,
    SHAPES,
    SIZES,
    TRAIN_SEEDS,
    VERSION,
    Object,
    Scene,
    make_scene,
)

__all__ = [
    "COLORS",
    "GLYPHS",
    "HELD_OUT_SEEDS",
    "IMAGE_SIZE",
    "KINDS",
    "NUMBERS",
    "PATCH_SIZE",
    "PLACES",
    "PLURALS",
    "SHAPES",
    "SIZES",
    "TRAIN_SEEDS",
    "VERSION",
    "WORDINGS",
    "Object",
    "Question",
    "Scene",
    "ask",
    "draw",
    "held_out",
    "make_scene",
    "render",
]
