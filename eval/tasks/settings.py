"""Settings of a task: from YAML, taken one by one and checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.files.untrusted import parse_yaml, read_text, said, short
from vlmcompress.registry import unknown


class Settings:
    """The keys and values of one YAML file."""

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises:
            VLMCompressError: it is missing, is not YAML, or holds anything but keys and values.
        """
        self.path = path
        try:
            with needs_eval():
                found = parse_yaml(read_text(path))
        except OSError as error:
            raise VLMCompressError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except VLMCompressError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            raise self.error(f"the file {said(error)}") from error
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise self.error("expected lines of the form 'key: value'")
        self._left: dict[str, Any] = found
        self._known: list[str] = []

    def has(self, key: str) -> bool:
        """Whether `key`, which may be absent, was given."""
        self._known.append(key)
        return key in self._left

    def __contains__(self, key: str) -> bool:
        """Whether `key` was given and not yet taken, be it a known one or not."""
        return key in self._left

    def error(self, message: object) -> VLMCompressError:
        """An error that names the file."""
        return VLMCompressError(f"{self.path}: {message}")

    def any(self, key: str, default: Any = None) -> Any:
        """The value of `key`, whatever it is; `default` where it is absent."""
        self._known.append(key)
        return self._left.pop(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty. Raises a VLMCompressError, as the following do."""
        value = self._given(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key!r} must be a text, got {short(value)}")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number from 1."""
        value = self._given(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key!r} must be a whole number from 1, got {short(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts that is not empty."""
        value = self._given(key)
        if not isinstance(value, list) or not value or not _all_texts(value):
            raise self.error(f"{key!r} must be a list of texts, got {short(value)}")
        return tuple(value)

    def table(self, key: str) -> dict[str, str]:
        """Names, each with a text; not empty."""
        value = self._given(key)
        if not isinstance(value, dict) or not value or not _all_texts([*value, *value.values()]):
            raise self.error(f"{key!r} must be names, each with a text, got {short(value)}")
        return value

    def finish(self) -> None:
        """Raise a VLMCompressError if a key is left that nobody took."""
        for key in self._left:
            raise self.error(unknown("key", key, list(dict.fromkeys(self._known))))

    def _given(self, key: str, default: Any = None) -> Any:
        value = self.any(key, default)
        if value is None:
            raise self.error(f"{key!r} is missing")
        return value


def check_name(name: str) -> str:
    """`name`, or a VLMCompressError if a task cannot be called so."""
    if not re.fullmatch(r"[A-Za-z0-9_/-]+", name):
        raise VLMCompressError(f"task name {name!r} may have only letters, digits, '-', '_', '/'")
    return name


def check_limit(limit: int) -> int:
    """`limit`, or a VLMCompressError if so few samples cannot be asked."""
    if limit < 1:
        raise VLMCompressError(f"the number of samples must be at least 1, got {limit}")
    return limit


def _all_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
