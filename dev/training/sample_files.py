"""The example pictures and clips: held-out scenes under short names, with a question for each."""

import json
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmcompress.eval.worlds.clips import FRAMES_PER_SECOND, make_clip, render_clip
from vlmcompress.eval.worlds.posters.draw import draw_poster
from vlmcompress.eval.worlds.posters.poster import make_poster
from vlmcompress.eval.worlds.world import draw, make_scene


@dataclass(frozen=True)
class SampleFile:
    """An example picture or clip; `seed` is the held-out scene that it shows."""

    seed: int
    question: str
    answer: str


# "street" is the one with exactly one circle. All are examples that tiny-llava answers right with
# all of its tokens; how often it does so in general stands in docs/eval.
SAMPLES = {
    "street": SampleFile(1_900_122, "what color is the circle ?", "green"),
    "market": SampleFile(1_900_027, "how many circles are there ?", "three"),
    "harbor": SampleFile(1_900_028, "what is written on the blue cross ?", "k"),
    "garden": SampleFile(1_900_041, "where is the yellow circle ?", "right"),
    "station": SampleFile(1_900_072, "what shape is the blue object ?", "diamond"),
    "kitchen": SampleFile(1_900_068, "is the purple circle left of the yellow star ?", "yes"),
}
# The same for tiny-qwen, which is shown the encoded file.
CLIPS = {
    "runway": SampleFile(1_900_002, "which way does the circle move ?", "right"),
    "elevator": SampleFile(1_900_000, "in which direction does the cross move ?", "down"),
    "stage": SampleFile(1_900_083, "which object appears after the diamond ?", "black circle"),
    "lighthouse": SampleFile(1_900_001, "which object appears first ?", "orange square"),
    "arcade": SampleFile(1_900_005, "how many objects appear ?", "five"),
}
# The same for small-llava.
POSTERS = {
    "attic": SampleFile(1_900_012, "where is the house ?", "center"),
    "menu": SampleFile(1_900_042, "what is written next to the apple ?", "a e 1"),
    "survey": SampleFile(1_900_029, "which bar is the highest ?", "blue"),
    "roost": SampleFile(1_900_053, "what is written under the ghost ?", "a v x"),
}


def write_samples(folder: Path) -> None:
    """Draw every picture as `<name>.png`, every clip as `<name>.mp4`, and list them with questions.

    The listings are samples.json, posters.json and clips.json: file -> seed, question, answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: draw(make_scene(sample.seed)) for name, sample in SAMPLES.items()}
    pictures |= {name: draw_poster(make_poster(one.seed)) for name, one in POSTERS.items()}
    for name, picture in pictures.items():
        unfinished = folder / f".{name}.tmp"
        picture.save(unfinished, format="PNG", optimize=True)
        os.replace(unfinished, folder / f"{name}.png")
    for name, sample in CLIPS.items():
        write_clip(folder / f"{name}.mp4", render_clip(make_clip(sample.seed))[0])
    for suffix, samples, listing in (
        ("png", SAMPLES, "samples"),
        ("png", POSTERS, "posters"),
        ("mp4", CLIPS, "clips"),
    ):
        listed = {f"{name}.{suffix}": asdict(sample) for name, sample in samples.items()}
        (folder / f"{listing}.json").write_text(json.dumps(listed, indent=2) + "\n")


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """Encode `frames`, [T, H, W, 3], as H.264, or as MPEG-4 where PyAV comes without it."""
    import av

    codec, options = "libx264", {"crf": "14", "preset": "veryslow"}
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}
    unfinished = path.with_suffix(".tmp")
    with av.open(str(unfinished), "w", format="mp4") as file:
        stream: Any = file.add_stream(codec, rate=Fraction(FRAMES_PER_SECOND), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    os.replace(unfinished, path)
