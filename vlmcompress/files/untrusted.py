"""Texts and files of strangers: how large, how deep and how long, and how they are shown.

Whatever is read as JSON or YAML, and whatever of it is shown in a message, comes through here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError

MAX_BYTES = 64 * 2**20
"""Of a file that is read at once."""
MAX_LINE = 16 * 2**20
"""Letters of a line of JSON lines."""
MAX_DEPTH = 64
"""Lists and objects inside each other."""
MAX_VALUES = 10_000_000
"""Values of a document."""
MAX_DIGITS = 100
"""Of a whole number; nothing here counts so far."""
MAX_SHOWN = 60
"""Letters of a value in a message."""
MAX_MESSAGE = 2_000
"""Letters of a message."""

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+:/|data:|www\.)")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories that move the cursor, reorder letters or cannot be written."""


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds, within the limits.

    Raises:
        VLMCompressError: it is not JSON, or beyond a limit.
    """
    try:
        found = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise VLMCompressError(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise VLMCompressError("not UTF-8 text") from error
    except RecursionError as error:
        raise _too_deep() from error
    check_document(found)
    return found


def parse_yaml(text: str) -> Any:
    """What a YAML text holds, within the limits. It may have no aliases, which multiply.

    Raises:
        VLMCompressError: it is not YAML, or beyond a limit.
        ImportError: PyYAML, of the extra `eval`, is not installed.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.get_event()
                raise VLMCompressError(f"the alias *{event.anchor}: write the value out")
            return super().compose_node(parent, index)

    try:
        found = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise VLMCompressError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _too_deep() from error
    except VLMCompressError:
        raise
    except ValueError as error:  # of a date or a number that there is not
        raise VLMCompressError(f"not YAML: {error}") from error
    check_document(found)
    return found


def read_text(path: Path) -> str:
    """A UTF-8 file within the limits.

    Raises:
        VLMCompressError: it is too large or not UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise VLMCompressError(f"larger than {MAX_BYTES // 2**20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VLMCompressError("not UTF-8 text") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds, within the limits; errors are those of `parse_json`, `read_text`."""
    return parse_json(read_text(path))


def check_document(found: Any) -> None:
    """Raise a VLMCompressError about nesting, numbers and texts that nothing can be done with."""
    left, count = [(found, 1)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if count > MAX_VALUES:
            raise VLMCompressError(f"more than {MAX_VALUES} values")
        if isinstance(value, str):
            check_text(value)
        elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise _too_long()
        elif isinstance(value, dict):
            left += [(one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list | tuple):
            left += [(one, depth + 1) for one in value]


def said(error: VLMCompressError) -> str:
    """What follows the name of a file: `is not JSON: ...`, `has more than ...`."""
    text = str(error)
    return f"is {text}" if text.startswith(("not ", "larger ")) else f"has {text}"


def short(value: object) -> str:
    """A value for a message, however large it is."""
    if isinstance(value, str):
        text = repr(value[: MAX_SHOWN + 1])
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        return f"a number of more than {MAX_DIGITS} digits"
    elif isinstance(value, list | tuple | dict):
        text = _start(value)
    else:
        text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def visible(text: str) -> str:
    """A text of one line without what would move the cursor or turn the letters around."""
    return "".join(_escaped(letter) for letter in text)


def one_line(message: object) -> str:
    """A message for the terminal: one visible line that is not too long."""
    text = visible(" ".join(str(message).split()))
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def check_file_name(text: str) -> None:
    """Raise a VLMCompressError if a text that should name a file is empty or an address."""
    if not text:
        raise VLMCompressError("a file has no name: got an empty text")
    if _URL.match(text) and not Path(text).exists():
        raise VLMCompressError(
            f"{short(text)} is an address, and nothing is fetched: download it, and give the file"
        )


def _start(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> str:
    """The first few entries, none of them deeper than one level."""
    if isinstance(value, dict):
        pairs = list(value.items())[:4]
        inner = ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in pairs)
    else:
        inner = ", ".join(_flat(one) for one in value[:8])
    more = ", ..." if len(value) > (4 if isinstance(value, dict) else 8) else ""
    brackets = {"list": "[]", "tuple": "()"}.get(type(value).__name__, "{}")
    return f"{brackets[0]}{inner}{more}{brackets[1]}"


def _flat(value: object) -> str:
    if isinstance(value, list | tuple | dict):
        return "[...]" if not isinstance(value, dict) else "{...}"
    return short(value)


def _escaped(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in _HIDDEN:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def check_text(text: str) -> None:
    """Raise a VLMCompressError about letters that cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VLMCompressError(f"half a surrogate pair in the text {short(text)}") from error


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _too_long()
    return int(digits)


def _too_long() -> VLMCompressError:
    return VLMCompressError(f"a number of more than {MAX_DIGITS} digits")


def _too_deep() -> VLMCompressError:
    return VLMCompressError(f"more than {MAX_DEPTH} lists and objects inside each other")
