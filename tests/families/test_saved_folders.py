"""`vlmcompress ask` on folders of models of today: weights and processor by the Auto classes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import write_clip
from PIL import Image
from saved_folders import FOLDERS, save
from scope import mended
from typer.testing import CliRunner

from vlmcompress.api import compress
from vlmcompress.cli import app
from vlmcompress.models.loading import load
from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.families.table import row_of
from vlmcompress.prompts import generate, prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::vlmcompress.errors.UntestedModelWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SETTINGS = {
    "divprune": "25%",
    "hiprune": "25%",
    "visionzip": "50%",
    "fastv": None,
    "pyramiddrop": None,
    "auto": "25%",
}
"""Method -> budget."""
HAVE_TORCHVISION = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: Any, tmp_path_factory: Any) -> Any:
    if FOLDERS[request.param].torchvision and not HAVE_TORCHVISION:
        pytest.skip("its processor needs torchvision")
    with mended(request.param):
        yield save(tmp_path_factory.mktemp("folders") / request.param, request.param)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: Any) -> Path:
    """An image that is not square."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(folder: Path, *arguments: Any) -> Any:
    """What the command line gives back."""
    words = ["ask", *map(str, arguments), "what is this ?", "--model", str(folder)]
    options = ["--max-new-tokens", "3", "--device", "cpu", "--dtype", "float32", "--json"]
    return CliRunner().invoke(app, words + options)


def ask(folder: Path, *arguments: Any) -> dict[str, Any]:
    """The JSON document that the command prints."""
    result = run(folder, *arguments)
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def method_of(name: str) -> list[str]:
    budget = SETTINGS[name]
    return ["--method", name, *(["--budget", budget] if budget else [])]


@pytest.mark.parametrize("method", SETTINGS)
def test_a_picture_is_asked_about(folder, picture, method):
    document = ask(folder, picture, *method_of(method))
    images = document["report"]["images"]
    before, mean = (sum(image[key] for image in images) for key in ("before", "mean"))
    assert document["report"]["engaged"]
    assert 0 < mean < before
    if SETTINGS[method] is not None:
        share = int(SETTINGS[method].rstrip("%")) / 100
        assert mean <= round(before * share) + len(images)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_clip_is_asked_about(folder, tmp_path, method):
    if FOLDERS[folder.name].clip is None:
        pytest.skip("its clips need torchvision")
    clip = write_clip(tmp_path / "clip.mp4", 8, (128, 96), times=list(range(0, 2000, 250)))
    document = ask(folder, "--video", clip, "--frames", 8, *method_of(method))
    (image,) = document["report"]["images"]
    assert document["report"]["engaged"]
    assert image["grid"][0] == 4
    assert 0 < image["mean"] < image["before"]


@pytest.mark.parametrize("media", ["picture", "clip"])
def test_what_is_kept_is_drawn(folder, picture, tmp_path, media):
    if media == "clip" and FOLDERS[folder.name].clip is None:
        pytest.skip("its clips need torchvision")
    shown = picture if media == "picture" else write_clip(tmp_path / "clip.mp4", 8, (128, 96))
    drawn = tmp_path / "kept.png"
    result = run(folder, shown, *method_of("divprune"), "--overlay", drawn)
    assert result.exit_code == 0, result.stderr
    assert np.asarray(Image.open(drawn)).std() > 1


@pytest.mark.parametrize("method", ["pixelprune", "downsample"])
def test_pixels_are_left_out(folder, picture, method):
    if not row_of(folder.name).pixels:
        pytest.skip("its pixels are cut up in a way of their own")
    (image,) = ask(folder, picture, "--method", method, "--budget", "50%")["report"]["images"]
    assert image["given"] < image["before"]


def test_a_budget_may_be_a_cost(folder, picture):
    if row_of(folder.name).no_costs is not None:
        result = run(folder, picture, "--budget", "0.9 flops")
        assert result.exit_code == 2
        assert row_of(folder.name).no_costs in result.stderr
        return
    images = ask(folder, picture, "--method", "divprune", "--budget", "0.97 flops")
    (image, *_) = images["report"]["images"]
    assert 0 < image["after"] < image["before"]


def test_compress_in_python_leaves_the_model_as_it_was(folder, picture):
    model, processor = load(folder, device="cpu", dtype="float32")
    prepared = prepare(model, processor, [([Image.open(picture)], "what is this ?")])

    def say() -> str:
        return generate(model, processor, prepared, max_new_tokens=3).texts[0]

    bare = say()
    with compress(model, "hiprune", budget="25%", processor=processor) as c:
        say()
        assert c.report().engaged
    assert engine_of(model) is None
    assert say() == bare
