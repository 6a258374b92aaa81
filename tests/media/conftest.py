"""Clips, and each decoder in turn."""

import pytest
from clip_corpus import make_corpus
from clip_files import write_clip

from vlmcompress.media.decoders import choice


@pytest.fixture(params=list(choice.installed()))
def decoder(request):
    """The name of each decoder that is installed here, as `read_video` takes it."""
    return request.param


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """40 frames at 10 a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Kind of clip -> a file of it."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
