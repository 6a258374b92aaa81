"""Clips, and each decoder in turn."""

import pytest
from clip_files import write_clip

from vlmcompress.media import video
from vlmcompress.media import video_decoders as decoders

INSTALLED = decoders.installed()


@pytest.fixture(params=list(INSTALLED))
def decoder(request, monkeypatch):
    """Each decoder in turn, as if it were the only one."""
    name = request.param
    monkeypatch.setattr(video, "installed", lambda: {name: INSTALLED[name]})
    return name


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """40 frames at 10 a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")
