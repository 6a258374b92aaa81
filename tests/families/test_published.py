"""Twelve published checkpoints: loaded, asked and reported with the token counts that are known."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from PIL import Image
from published import write_checkpoint
from published_native import NATIVE
from published_tiles import TILES
from typer.testing import CliRunner

from vlmcompress.cli import app

PUBLISHED = {**TILES, **NATIVE}
QUICK = ("llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct")
"""Those of the default tier."""
WIDTH, HEIGHT, FRAMES = 640, 480, 8
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED]
WITH_CLIPS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name, published in PUBLISHED.items()
    if published.clip is not None
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a checkpoint, written once."""
    root, written = tmp_path_factory.mktemp("published"), {}

    def write(name):
        if name not in written:
            written[name] = write_checkpoint(root / name.replace("/", "--"), PUBLISHED[name])
        return written[name]

    return write


def frame(number):
    """Smooth colours that move."""
    y, x, c = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), np.arange(3), indexing="ij")
    waves = 127 + 120 * np.sin(x / 50 + number / 2 + c) * np.cos(y / 30 - c)
    return waves.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(frame(0)).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = WIDTH, HEIGHT
        for number in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number))))
        container.mux(stream.encode())
    return path


def report_of(*arguments, budget="25%"):
    """Of `vlmcompress ask`, which loads the folder through the Auto classes."""
    arguments = [*arguments, "--method", "divprune", "--budget", budget]
    arguments += ["--max-new-tokens", "2", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["ask", "--question", "what ?", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["report"]


def check(report, tokens):
    """A quarter of the known count, rounded in each picture."""
    images = report["images"]
    assert sum(image["before"] for image in images) == tokens
    assert abs(sum(image["after"] for image in images) - tokens / 4) <= len(images) / 2
    assert report["engaged"]


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_has_the_known_number_of_tokens(name, folder_of, photo):
    published, model = PUBLISHED[name], folder_of(name)
    check(report_of("--image", photo, "--model", model), published.photo)
    if published.separators:
        (image,) = report_of("--image", photo, "--model", model, budget="100%")["images"]
        assert image["separators"][0] == published.separators


@pytest.mark.parametrize("name", WITH_CLIPS)
def test_a_clip_has_the_known_number_of_tokens(name, folder_of, clip):
    model = folder_of(name)
    report = report_of("--video", clip, "--frames", FRAMES, "--model", model)
    check(report, PUBLISHED[name].clip)
