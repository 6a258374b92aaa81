"""Generated files: written anew whole or in parts, or only compared."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def updated(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """`text` with every generated part made anew.

    Args:
        text: of a page; a part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
        parts: NAME -> what makes it.

    Raises:
        ValueError: the marks of a part are missing.
    """
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"the page has no <!-- {name} --> ... <!-- /{name} -->")
        start, end = found.span()
        text = f"{text[:start]}{found[1]}{make()}\n{found[2]}{text[end:]}"
    return text


def paper_link(paper: str) -> str:
    """A paper as Markdown, with its address if it is on arXiv."""
    number = re.fullmatch(r"arXiv (\d+\.\d+)", paper)
    return f"[{paper}](https://arxiv.org/abs/{number[1]})" if number else paper


def keep_up(
    make: Callable[[], Mapping[Path, str]], program: str, folder: Path | None = None
) -> None:
    """The command line of generated files: rewrite them, or with --check only say whether to.

    Args:
        make: gives the whole content of each file.
        program: name of the module.
        folder: holds nothing but such files, so that Markdown of others is deleted there.
    """
    parser = argparse.ArgumentParser(prog=f"python -m dev.pages.{program}")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if needed")
    check = parser.parse_args().check
    made = make()
    strays = [] if folder is None else sorted(set(folder.glob("*.md")) - set(made))
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if check and (stale or strays):
        sys.exit(f"{(stale + strays)[0].name} is out of date: run `make readme`")
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path])
    for path in strays:
        path.unlink()
