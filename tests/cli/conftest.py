"""A command line in this process, and pictures to ask about."""

import re

import numpy as np
import pytest
from clip_files import write_clip
from PIL import Image
from typer.testing import CliRunner

from vlmcompress.cli import app
from vlmcompress.models import loading


@pytest.fixture
def cli():
    """Call the command line with some arguments; stdout and stderr come back apart."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def loaded(monkeypatch, tiny_llava, tiny_qwen):
    """Make the commands use the models of the session, and count how often they load one."""
    calls = []

    def load(name, **options):
        loading.resolve(name)
        calls.append((name, options))
        return tiny_qwen if name == "tiny-qwen" else tiny_llava

    monkeypatch.setattr(loading, "load", load)
    return calls


@pytest.fixture(scope="session")
def tiny_qwen():
    """The built-in model for videos and its processor in float32."""
    return loading.load("tiny-qwen", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video file of 8 frames, 4 a second."""
    return write_clip(
        tmp_path_factory.mktemp("clip") / "clip.mp4", 8, (96, 96), times=list(range(0, 2000, 250))
    )


@pytest.fixture
def unloadable(monkeypatch):
    """Fail when a model is loaded: the mistake has to be found before."""
    monkeypatch.setattr(loading, "load", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.fixture
def picture(tmp_path):
    """An image file that is not square."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def refuses(cli, tmp_path):
    """Check that a command refuses its arguments with one line, and writes nothing."""

    def check(command, pattern, *arguments):
        before = sorted(tmp_path.rglob("*"))
        result = cli(command, *arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert re.match(f"error: .*{pattern}", result.stderr), result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    return check
