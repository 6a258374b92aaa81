"""Tables that papers published, as this package ships them; each file is read once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def published(path: Path) -> dict[str, Any]:
    """Name of a setting or model -> what `path` says of it; not to be changed."""
    tables: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tables
