"""examples/page_search.py runs as it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from vlmcompress.eval.worlds.pages import collection, draw_page

EXAMPLE = Path(__file__).parents[2] / "examples" / "page_search.py"

pytestmark = pytest.mark.slow


def run(monkeypatch, capsys, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_drawn_pages(monkeypatch, capsys):
    first, *found = run(monkeypatch, capsys)
    assert first == "24 pages of 40 vectors, 4 to choose candidates"
    drawn = collection(24, 3)
    for query, row, line in zip(drawn.queries, drawn.relevant, found, strict=True):
        relevant = [f"page {page.seed}" for page, yes in zip(drawn.pages, row, strict=True) if yes]
        assert line.startswith(f"{query.text}: ")
        assert line.removeprefix(f"{query.text}: ").partition(" (")[0] in relevant


def test_pages_of_a_folder(monkeypatch, capsys, tmp_path):
    drawn = collection(6, 2)
    for page in drawn.pages:
        draw_page(page).save(tmp_path / f"{page.seed}.png")
    text = drawn.queries[1].text
    first, line = run(monkeypatch, capsys, str(tmp_path), "--query", text, "--budget", "100%")
    assert first.startswith("6 pages of 80 vectors")
    assert line.startswith(f"{text}: {drawn.pages[1].seed}.png (")
