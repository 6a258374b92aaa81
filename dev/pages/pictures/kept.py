"""Draws what methods keep of one photograph and one drawn scene.

python -m dev.pages.pictures.kept --out build/docs/pictures               # every method
python -m dev.pages.pictures.kept --before-after docs/pictures/before_after.jpg
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

import vlmcompress
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import write_json
from vlmcompress.media.images import read_image
from vlmcompress.methods import MethodInfo
from vlmcompress.models.names import ASSETS
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.prompts import prepare
from vlmcompress.report.overlay import draw

SAMPLES = ASSETS / "samples"
PHOTOGRAPH, SCENE = SAMPLES / "coffee.jpg", SAMPLES / "street.png"
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
    inputs = prepare(one.model, one.processor, [([one.image], QUESTION)])
    compression = vlmcompress.compress(one.model, method, budget, processor=one.processor)
    with compression, torch.inference_mode():
        one.model(**inputs)
    return compression.report()


def drawn(one: Shown, report: vlmcompress.Report) -> Image:
    """The picture with the patches that are gone dimmed."""
    return draw([one.image], report.images, one.processor, side=_SIDE)


def gallery(folder: Path) -> None:
    """Draw every built-in method, and list in `INDEX` what is shown, or why nothing is.

    Args:
        folder: `NAME-photograph.jpg` and `NAME-scene.jpg` are written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"photograph": PHOTOGRAPH, "scene": SCENE}
    models = {
        model: {name: shown(model, path) for name, path in pictures.items()}
        for model in ("tiny-llava", "tiny-qwen")
    }
    index = {}
    for info in vlmcompress.list_methods():
        if info.package is None:
            model = "tiny-llava" if _acts(info, "llava") else "tiny-qwen"
            index[info.name] = {"model": model, **_draw(info.name, models[model], folder)}
    write_json(folder / INDEX, index)


def _acts(info: MethodInfo, family: str) -> bool:
    return bool(set(info.stages) & set(FAMILIES.get(family).stages))


def _draw(name: str, pictures: dict[str, Shown], folder: Path) -> dict[str, Any]:
    """Draw one method at the first budget that it can meet."""
    spec, why = TOLD.get(name, name), ""
    for budget in BUDGETS:
        try:
            reports = {part: kept(one, spec, budget) for part, one in pictures.items()}
        except VLMCompressError as error:
            why = str(error)
            continue
        for part, report in reports.items():
            drawn(pictures[part], report).save(folder / f"{name}-{part}.jpg", quality=80)
        return {"method": spec, "budget": budget, "parts": list(reports)}
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
