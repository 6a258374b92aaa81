"""Media and question of a command line: which files, of which kind, and what is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vlmcompress import defaults
from vlmcompress.cli.common import silent_libraries
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home
from vlmcompress.files.untrusted import MAX_LINE, check_file_name, check_text
from vlmcompress.media.decoders.choice import AUTO, check_decoder
from vlmcompress.media.given import frames_of, kind_of
from vlmcompress.media.images import read_image
from vlmcompress.media.regular_files import check_file
from vlmcompress.media.video import Video, check_sampling, read_video

_STDIN = "-"


@dataclass(frozen=True)
class MediaArguments:
    """What the command line says about media and question."""

    words: Sequence[str]
    """Arguments without a name."""
    images: Sequence[str]
    videos: Sequence[str]
    question: str | None
    frames: int | None
    fps: float | None
    decoder: str | None = None


@dataclass(frozen=True)
class NamedMedia:
    """Files that are there, each with "image" or "video", and the question about them."""

    files: list[tuple[str, str]]
    question: str
    notes: list[str]
    """What the user should know about them."""

    @property
    def has_video(self) -> bool:
        """Whether one of them is a video."""
        return any(kind == "video" for _, kind in self.files)


def name_media(arguments: MediaArguments) -> NamedMedia:
    """Files and question, checked without decoding.

    Arguments without a name are files, but the last is the question unless that came by name.

    Raises:
        VLMCompressError: what is wrong and what would be right.
    """
    words, question = find_question(arguments)
    given: list[tuple[str, str | None]] = [(word, None) for word in words]
    given += [(file, "image") for file in arguments.images]
    given += [(file, "video") for file in arguments.videos]
    if not given:
        raise VLMCompressError(
            "no image and no video: give a file before the question, or with --image or --video"
        )
    files, notes = [], []
    for name, wanted in given:
        file = _file(name)
        kind = wanted or kind_of(file)
        check_file(file, kind)
        frames = frames_of(file) if kind == "image" else 1
        if frames > 1:
            notes.append(f"{file} holds {frames} frames: the first is taken; --video takes a clip")
        files.append((file, kind))
    found = NamedMedia(files, question, notes)
    check_for_videos(arguments, found.has_video)
    return found


def default_model(has_video: bool) -> str:
    """The built-in model that is asked where nobody says which."""
    return defaults.VIDEO_MODEL if has_video else defaults.MODEL


def read(file: str, kind: str, arguments: MediaArguments) -> Image.Image | Video:
    """What is in a file.

    Raises:
        MediaError: it cannot be read.
    """
    if kind == "image":
        return read_image(file)
    with silent_libraries():
        decoder = arguments.decoder or AUTO
        return read_video(file, arguments.frames, arguments.fps, decoder=decoder)


def find_question(arguments: MediaArguments) -> tuple[list[str], str]:
    """The words that are files, and the question, which `-` takes from stdin.

    Raises:
        VLMCompressError: there is no question.
    """
    words, question = list(arguments.words), arguments.question
    if question is None:
        if not words:
            raise VLMCompressError('no question: give one, as in vlmcompress ask image.png "..."')
        question = words.pop()
        if is_there(question):
            raise VLMCompressError(
                f"no question: the last argument {question!r} is a file or a folder"
            )
    if question == _STDIN:
        question = _from_stdin()
    check_text(question)
    if not question.strip():
        raise VLMCompressError("the question is empty")
    return words, question


def _from_stdin() -> str:
    try:
        return sys.stdin.read(MAX_LINE).strip()
    except UnicodeDecodeError as error:
        raise VLMCompressError("the question on stdin is not text") from error


def _file(name: str) -> str:
    if name == _STDIN:
        raise VLMCompressError("images and videos are not read from stdin: save it to a file first")
    check_file_name(name)
    return str(at_home(name))


def is_there(text: str) -> bool:
    """Whether a text names a file or a folder; a question may be longer than a name can be."""
    try:
        return bool(text) and at_home(text).exists()
    except (OSError, ValueError):
        return False


def check_for_videos(arguments: MediaArguments, has_video: bool) -> None:
    """Raise a VLMCompressError about options that are for videos, where they do not fit."""
    if arguments.frames is not None and arguments.fps is not None:
        raise VLMCompressError("--frames and --fps are both given: give one of them")
    if not has_video and (arguments.frames is not None or arguments.fps is not None):
        raise VLMCompressError("--frames and --fps are for videos, but no video is given")
    if arguments.decoder is not None:
        if not has_video:
            raise VLMCompressError("--decoder is for videos, but no video is given")
        check_decoder(arguments.decoder)
    check_sampling(arguments.frames, arguments.fps)
