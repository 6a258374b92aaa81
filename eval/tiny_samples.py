"""The example pictures: held-out scenes under short names, with a question for each."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmcompress.eval.worlds import draw, make_scene


@dataclass(frozen=True)
class Sample:
    """An example picture; `seed` is the held-out scene that it shows."""

    seed: int
    question: str
    answer: str


# "street" is the one with exactly one circle. All are examples that tiny-llava answers right with
# all of its tokens; how often it does so in general stands in accuracy.json.
SAMPLES = {
    "street": Sample(1_900_122, "what color is the circle ?", "green"),
    "market": Sample(1_900_027, "how many circles are there ?", "three"),
    "harbor": Sample(1_900_028, "what is written on the blue cross ?", "k"),
    "garden": Sample(1_900_041, "where is the yellow circle ?", "right"),
    "station": Sample(1_900_072, "what shape is the blue object ?", "diamond"),
    "kitchen": Sample(1_900_068, "is the purple circle left of the yellow star ?", "yes"),
}


def write_samples(folder: Path) -> None:
    """Draw every sample as `<name>.png`, and write `samples.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sample in SAMPLES.items():
        unfinished = folder / f".{name}.tmp"
        draw(make_scene(sample.seed)).save(unfinished, format="PNG", optimize=True)
        os.replace(unfinished, folder / f"{name}.png")
    listing = {f"{name}.png": asdict(sample) for name, sample in SAMPLES.items()}
    (folder / "samples.json").write_text(json.dumps(listing, indent=2) + "\n")
