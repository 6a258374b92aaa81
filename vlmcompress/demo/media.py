"""What a visitor of the page asks about: a file that was uploaded, or a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmcompress.errors import MediaError
from vlmcompress.files.untrusted import read_json
from vlmcompress.media.given import kind_of
from vlmcompress.media.images import read_image
from vlmcompress.media.regular_files import check_file
from vlmcompress.media.video import VIDEO_SUFFIXES, Video, read_video
from vlmcompress.models.names import ASSETS
from vlmcompress.registry import unknown
from vlmcompress.report.overlay import side_by_side

SAMPLES = ASSETS / "samples"
MAX_UPLOAD = 32 * 2**20
"""Bytes of a file that is taken."""
MAX_PIXELS = 40_000_000
"""Of a picture, and of a frame."""
MAX_FRAMES = 16
"""Sampled of a clip."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", *VIDEO_SUFFIXES)
"""Offered to the visitor; what a file holds is looked at when it is read."""


@dataclass(frozen=True)
class Sample:
    """A picture or clip that ships, and a question about it."""

    file: Path
    question: str


_LISTS = {"small-llava": "posters.json"}
"""The pictures that a built-in model learnt to look at, where they are not those of the others."""


def samples(video: bool, model: str = "") -> dict[str, Sample]:
    """By name: pictures that suit the `model` of that name, and clips where it takes them."""
    lists = [_LISTS.get(model, "samples.json"), *(["clips.json"] if video else [])]
    return {
        name: Sample(SAMPLES / name, facts["question"])
        for each in lists
        for name, facts in read_json(SAMPLES / each).items()
    }


def read(
    upload: str | None, sample: str | None, video: bool, model: str = ""
) -> Image.Image | Video:
    """What the page is about: the upload, or else the sample, one of those for `model`.

    Raises:
        MediaError: there is neither, the file cannot be read or is beyond a limit, or it is a clip
            and the model takes none.
        UnknownNameError: there is no such sample.
    """
    file = _file(upload, sample, samples(video, model))
    try:
        check_file(file, "file")
        if file.stat().st_size > MAX_UPLOAD:
            raise MediaError(f"file {file.name!r} is larger than {MAX_UPLOAD // 2**20} MiB")
        return _read(file, video)
    except MediaError as error:  # the folder of the server is nobody's business
        raise MediaError(str(error).replace(str(file), file.name)) from None


def _file(upload: str | None, sample: str | None, known: Mapping[str, Sample]) -> Path:
    if upload is not None:
        return Path(upload)
    if not sample:
        raise MediaError("choose a picture or a clip first, your own or a sample")
    if sample not in known:
        raise unknown("sample", sample, list(known))
    return known[sample].file


def _read(file: Path, video: bool) -> Image.Image | Video:
    if kind_of(str(file)) == "image":
        return read_image(file, max_pixels=MAX_PIXELS)
    if not video:
        raise MediaError(f"{file.name!r} is a clip, and this model takes pictures only")
    return read_video(file, max_frames=MAX_FRAMES, frames=MAX_FRAMES, max_pixels=MAX_PIXELS)


def preview(media: Image.Image | Video) -> Image.Image:
    """The picture, or the frames of a clip in rows."""
    if not isinstance(media, Video):
        return media
    frames = []
    for pixels in media.frames:
        frame = Image.fromarray(pixels)
        frame.thumbnail((160, 160))
        frames.append(frame)
    captions = [f"{time:.2f} s" for time in media.times]
    return side_by_side(frames, captions, columns=4, size=12)
