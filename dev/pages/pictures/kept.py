"""Draws what methods keep of one photograph and one drawn scene.

python -m dev.pages.pictures.kept --out build/docs/pictures               # every method
python -m dev.pages.pictures.kept --before-after docs/pictures/before_after.jpg
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

import vlmcompress
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import write_json
from vlmcompress.media.images import read_image
from vlmcompress.models.names import ASSETS
from vlmcompress.report.overlay.draw import draw

SAMPLES = ASSETS / "samples"
PHOTOGRAPH, SCENE = SAMPLES / "coffee.jpg", SAMPLES / "street.png"
PICTURES = {"photograph": PHOTOGRAPH, "scene": SCENE}
QUESTION = "what color is the circle ?"
INDEX = "pictures.json"
BUDGETS = ("25%", "40%", "50%", None)
"""The first that a method can meet is drawn."""
TOLD = {"embedlens": "embedlens(table='tiny-llava')"}
_SIDE = 400
_FINE = 384
"""Pixels of the photograph a side where `tiny-qwen` shows it in 24 x 24 tokens."""


@dataclass(frozen=True)
class Shown:
    """A model and its processor, and the picture that it is shown."""

    model: Any
    processor: Any
    image: Image


def shown(model: str, picture: Path, pixels: int | None = None) -> Shown:
    """Load a built-in model and a picture.

    Args:
        model: its name.
        picture: file.
        pixels: a side of the picture, for models that take any size; None for their own.
    """
    loaded, processor = vlmcompress.load(model)
    if pixels is not None:
        area = pixels * pixels
        processor.image_processor.size = {"longest_edge": area, "shortest_edge": area}
    return Shown(loaded, processor, read_image(picture))


def kept(one: Shown, method: str, budget: str | None) -> vlmcompress.Report:
    """What a method keeps of the picture, for the same question each time.

    Raises:
        VLMCompressError: it cannot meet the budget, or lacks something in this model.
    """
    return vlmcompress.ask(
        one.model, one.processor, one.image, QUESTION, method, budget, max_new_tokens=1
    ).report


def drawn(one: Shown, report: vlmcompress.Report) -> Image:
    """The picture with the patches that are gone dimmed."""
    return draw([one.image], report.images, one.processor, side=_SIDE)


def gallery(folder: Path) -> None:
    """Draw every built-in method, and list in `INDEX` what is shown, or why nothing is.

    Args:
        folder: `NAME-photograph.jpg` and `NAME-scene.jpg` are written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        model: {part: shown(model, path) for part, path in PICTURES.items()}
        for model in ("tiny-llava", "tiny-qwen")
    }
    names = [info.name for info in vlmcompress.list_methods() if info.package is None]
    write_json(folder / INDEX, {name: _draw(name, models, folder) for name in names})


def _draw(name: str, models: dict[str, dict[str, Shown]], folder: Path) -> dict[str, Any]:
    """Draw one method in the first model, and at the first budget, that it can work in."""
    spec, why = TOLD.get(name, name), ""
    for model, budget in itertools.product(models, BUDGETS):
        pictures = models[model]
        try:
            reports = {part: kept(one, spec, budget) for part, one in pictures.items()}
        except VLMCompressError as error:
            why = why or str(error)
            continue
        for part, report in reports.items():
            drawn(pictures[part], report).save(folder / f"{name}-{part}.jpg", quality=80)
        return {"method": spec, "model": model, "budget": budget, "parts": list(reports)}
    return {"method": spec, "cannot": why}


def before_after(path: Path) -> None:
    """The photograph with all of its tokens beside what `divprune` leaves of it."""
    one = shown("tiny-qwen", PHOTOGRAPH, _FINE)
    reports = [kept(one, "full", None), kept(one, "divprune", "25%")]
    images = [image for report in reports for image in report.images]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw([one.image] * 2, images, one.processor, side=_SIDE).save(path, quality=82, optimize=True)


def main() -> None:
    """Draw the gallery, or the picture of the README."""
    parser = argparse.ArgumentParser(prog="python -m dev.pages.pictures.kept", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for a picture of each method")
    parser.add_argument("--before-after", type=Path, help="file for the picture of README.md")
    given = parser.parse_args()
    if given.out is not None:
        gallery(given.out)
    if given.before_after is not None:
        before_after(given.before_after)


if __name__ == "__main__":
    main()
