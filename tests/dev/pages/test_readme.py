"""README.md and the examples do what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import transformers

from dev.pages import committed_results, generated, readme, which
from dev.pages import models as models_page
from dev.pages.generated import updated
from vlmcompress.methods.registry import METHODS
from vlmcompress.version import NEWEST_TRANSFORMERS

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "README.md").read_text()
newest = pytest.mark.skipif(
    transformers.__version__ != NEWEST_TRANSFORMERS, reason="counts the types of the newest"
)


def test_it_is_one_screen():
    assert len(TEXT.encode()) <= 9000
    head, code = TEXT.split("```python")[:2]
    assert len(head.split()) < 150, "words before the first Python"
    assert len(code.split("```")[0].strip().splitlines()) <= 10


def test_the_table_is_up_to_date():
    assert updated(TEXT, {"figures": readme.figures}) == TEXT, "run `make readme`"


@newest
def test_the_badge_is_up_to_date():
    assert updated(TEXT, {"coverage": readme.coverage}) == TEXT, "run `make readme`"


@newest
def test_the_page_of_models_is_up_to_date():
    assert models_page.PAGE.read_text() == models_page.page(), "run `make readme`"


@pytest.mark.slow
def test_the_page_of_what_to_use_is_up_to_date():
    assert which.PAGE.read_text() == which.page(), "run `make readme`"


def test_the_table_has_accuracy_time_and_machine():
    text = readme.figures()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(readme.METHODS) + 1
    for row in rows[:-1]:
        assert len(re.findall(r"\d+\.\d %, \d+ ms", row)) == len(readme.BUDGETS)
    assert f", {committed_results.results('tiny-llava')['provenance']['device']}, " in text
    assert re.search(r"needs \d+ ms to the first token, the whole model \d+ ms", text)


def test_check_notices_an_old_part(monkeypatch, tmp_path):
    old = tmp_path / "README.md"
    changed = TEXT.replace("| `divprune` |", "| `divprune2` |")
    assert changed != TEXT
    old.write_text(changed)
    monkeypatch.setattr(readme, "README", old)
    monkeypatch.setattr(readme, "PARTS", {"figures": readme.figures})
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        readme.main()
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert old.read_text() == TEXT


def test_pages_of_a_folder_that_nothing_makes_are_deleted(monkeypatch, tmp_path):
    (tmp_path / "old.md").write_text("old")
    make = {tmp_path / "new.md": "new"}.copy
    monkeypatch.setattr(sys, "argv", ["pages", "--check"])
    with pytest.raises(SystemExit, match=r"new\.md is out of date"):
        generated.keep_up(make, "pages", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pages"])
    generated.keep_up(make, "pages", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new.md"]


def test_missing_marks_are_an_error():
    with pytest.raises(ValueError, match="<!-- figures -->"):
        updated(TEXT.replace("<!-- figures -->", ""), readme.PARTS)


def test_targets_of_the_makefile_exist():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"(?:^|`)make ([a-z-]+)", TEXT + contributing, re.MULTILINE)
    assert {"demo", "test", "setup"} <= set(named)
    assert set(named) <= set(targets)


def test_linked_files_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", TEXT)
    # Above the repository is its page on GitHub, which a badge asks for.
    files = [target for target in targets if not target.startswith("../../actions/")]
    assert len(files) > 20
    for target in files:
        assert (ROOT / target).is_file(), target


NOT_HERE = {
    "page_search.py": "tests/retrieval/test_example.py",
    "ray_batch.py": "nowhere: it needs Ray",
    "vllm_batch.py": "tests/vllm_engine/test_example.py",
}
EXAMPLES = [one for one in sorted((ROOT / "examples").glob("*.py")) if one.name not in NOT_HERE]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, monkeypatch, capsys):
    assert len(example.read_text().splitlines()) < 60
    samples = ROOT / "vlmcompress" / "assets" / "samples"
    asked = [str(min(samples.glob("*.png"))), "what color is the circle ?"]
    if "video" in example.name:
        asked = [str(min(samples.glob("*.mp4"))), "which way does the circle move ?"]
    monkeypatch.setattr(sys, "argv", [str(example), *asked])
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # one registers its own
    runpy.run_path(str(example), run_name="__main__")
    assert "144 -> 36 tokens" in capsys.readouterr().out
