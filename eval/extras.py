"""What the extra `eval` installs, and what is said where it is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vlmcompress.errors import VLMCompressError


@contextlib.contextmanager
def needs_eval() -> Iterator[None]:
    """Import within this block what the extra `eval` installs.

    Raises:
        VLMCompressError: something is not installed; the message says how to install it.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or str(error)).partition(".")[0]
        if name == "vlmcompress":
            raise  # a fault of this package, which no installation mends
        raise VLMCompressError(
            f"this needs the extra eval, and {name} is missing: pip install 'vlmcompress[eval]'"
        ) from error


def check_eval() -> None:
    """Raise a VLMCompressError where a run could not be reported in the end."""
    with needs_eval():
        import filelock  # noqa: F401
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import rapidfuzz  # noqa: F401
        import scipy  # noqa: F401
        import statsmodels  # noqa: F401
        import yaml  # noqa: F401
