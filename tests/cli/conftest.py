"""A command line in this process, and pictures to ask about."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlmcompress import loading
from vlmcompress.cli import app


@pytest.fixture
def cli():
    """Call the command line with some arguments; stdout and stderr come back apart."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def loaded(monkeypatch, tiny_llava):
    """Make the commands use the model of the session, and count how often they load one."""
    calls = []

    def load(name, **options):
        loading.resolve(name)
        calls.append((name, options))
        return tiny_llava

    monkeypatch.setattr(loading, "load", load)
    return calls


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
