"""What the name of a model stands for: a built-in folder, a path, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home
from vlmcompress.registry import unknown

ASSETS = Path(__file__).parents[1] / "assets"


BUILT_IN = {"tiny-llava": "tiny_llava", "tiny-qwen": "tiny_qwen", "small-llava": "small_llava"}
"""Name of a model that ships with the package -> its folder in `ASSETS`."""

RETRIEVERS = {"tiny-colqwen": "tiny_colqwen"}
"""The same of models that embed pages and answer no questions."""

SHIPPED = {**BUILT_IN, **RETRIEVERS}
"""All that ship with the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(name_or_path: str | Path) -> str:
    """Where the model is: a folder for a built-in name or a path, else the hub id as it was given.

    Looks at names and folders only, so that a typing mistake is found before anything is loaded.

    Raises:
        VLMCompressError: neither a built-in name, nor a model folder, nor the form of a hub id.
    """
    given = str(name_or_path)
    folder = SHIPPED.get(given)
    if folder is not None:
        return str(ASSETS / folder)
    if not given:
        raise VLMCompressError("the model has no name: give a name, a folder or a Hugging Face id")
    path = at_home(given)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise VLMCompressError(f"model folder {given!r} has no config.json")
        return str(path)
    if path.exists():
        raise VLMCompressError(f"model {given!r} is a file: give the folder that holds it")
    if _HUB_ID.fullmatch(given):
        return given
    if "/" in given or "\\" in given:
        raise VLMCompressError(f"model folder {given!r} does not exist")
    known = [
        *SHIPPED,
        "a folder",
        "a Hugging Face id such as llava-hf/llava-1.5-7b-hf",
    ]
    raise unknown("model", given, known)
