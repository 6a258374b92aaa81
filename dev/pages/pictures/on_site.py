"""What a page gets on the site and does not have in the repository: pictures, and links that fit.

The pictures are drawn when the site is built (`dev.pages.pictures.kept`), none is committed.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from dev.pages.generated import ROOT
from dev.pages.pictures.kept import INDEX
from vlmcompress.eval.report.markdown import as_table

DRAWN = ROOT / "build" / "docs" / "pictures"
"""Where `make docs` draws them."""
_HOMES = {
    "](../CONTRIBUTING.md": "](contributing.md",
    "](CONTRIBUTING.md": "](contributing.md",
    "](docs/": "](",
}
"""Links of the repository -> those of the site."""
_DRAWN = "../build/docs/pictures"
"""The same from docs/."""
_ACROSS = 4
_CONTENTS = "\n```{toctree}\n:hidden:\n:glob:\n\nmethods/*\n```\n"


def on_site(page: str, text: str) -> str:
    """The Markdown of a page as the site shows it.

    Args:
        page: path below docs/, without its ending.
        text: as it stands in the repository.

    Raises:
        FileNotFoundError: the pictures of the methods have not been drawn.
    """
    for old, new in _HOMES.items():
        text = text.replace(old, new)
    if page == "methods":
        return f"{text}\n{_gallery()}{_CONTENTS}"
    folder, _, method = page.rpartition("/")
    if folder == "methods":
        head, facts, rest = text.split("\n\n", 2)
        return f"{head}\n\n{facts}\n\n{_picture(method)}\n\n{rest}"
    return text


def _gallery() -> str:
    """The photograph as each method leaves it, four in a row."""
    cells = [
        f"[![{name}]({_DRAWN}/{name}-photograph.jpg)](methods/{name}.md) "
        f"`{one['method']}`, {one['budget'] or 'its own setting'}"
        for name, one in _index().items()
        if "parts" in one
    ]
    rows = [cells[k : k + _ACROSS] for k in range(0, len(cells), _ACROSS)]
    rows[-1] += [""] * (_ACROSS - len(rows[-1]))
    return f"## What each keeps\n\n{as_table([''] * _ACROSS, rows)}\n"


def _picture(method: str) -> str:
    """The photograph and the scene with what a method keeps, and a line that says how."""
    one = _index()[method]
    if "cannot" in one:
        return f"*Not drawn: {one['cannot']}.*"
    budget = f"at {one['budget']} of the tokens" if one["budget"] else "at its own setting"
    spec, at = f"`{one['method']}`", f"../{_DRAWN}"
    shown = " ".join(
        f'![{part}: what {spec} keeps]({at}/{method}-{part}.jpg){{width="48%"}}'
        for part in one["parts"]
    )
    return (
        f"{shown}\n\n*What {spec} keeps {budget} of a photograph and of a drawn scene, in "
        f"`{one['model']}`, which was trained on such scenes alone. A patch is as bright as the "
        "share of decoder layers that it reaches; lines run around what is kept or merged.*"
    )


@cache
def _index() -> dict[str, dict[str, Any]]:
    path = DRAWN / INDEX
    if not path.exists():
        raise FileNotFoundError(f"no {path}: run `make docs`, which draws it")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return found
