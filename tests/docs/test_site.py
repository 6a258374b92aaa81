"""The pages of the site: links, the API, and what is drawn for them."""

import re
import sys
from pathlib import Path

import pytest

import vlmcompress
from dev.pages.pictures import concepts, kept, on_site

ROOT = Path(vlmcompress.__file__).parents[1]
MARKDOWN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|\.\./\.\./actions/)([^)\s]*)\)")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchors(path):
    """Those that GitHub and the site give to headings."""
    text = CODE.sub(
        lambda found: found[0].strip("`") if "\n" not in found[0] else "", path.read_text()
    )
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    """As they stand in the repository; `make docs` follows those of the site."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api.rst").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: vlmcompress\.(\w+)$", text, re.MULTILINE))
    # The module of the errors holds the one that is a public name.
    assert shown - {"errors"} == set(vlmcompress.__all__) - {"__version__", "VLMCompressError"}
    assert "errors" in shown


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^([\w/-]+)$", contents, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in MARKDOWN[3:]}
    single = {str(page) for page in pages if page.parent.name != "methods"} - {"index"}
    assert single | {"api"} == listed


def test_methods_that_are_compared_cost_the_same():
    for spec in concepts.COMPARED:
        counts = concepts.per_layer(spec)
        assert len(counts) == concepts.LAYERS
        assert sum(counts) / concepts.LAYERS == pytest.approx(concepts.BUDGET, abs=0.5)


def test_the_pictures_of_concepts_are_there():
    text = (ROOT / "docs" / "concepts.md").read_text()
    drawn = {f"pictures/{name}.svg" for name in concepts.PICTURES}
    assert set(re.findall(r"\(([^)]*\.svg)\)", text)) == drawn
    for name in drawn:
        assert (ROOT / "docs" / name).read_text().startswith("<?xml")


@pytest.fixture
def gallery(tmp_path, monkeypatch, tiny_llava, tiny_qwen):
    """Drawn for three methods: one as any, one that cannot meet a quarter, one that never can."""
    models = {"tiny-llava": tiny_llava, "tiny-qwen": tiny_qwen}
    monkeypatch.setattr(vlmcompress, "load", models.__getitem__)
    every = vlmcompress.list_methods()
    some = [info for info in every if info.name in ("divprune", "fastv", "var")]
    monkeypatch.setattr(vlmcompress, "list_methods", lambda: some)
    kept.gallery(tmp_path)
    monkeypatch.setattr(on_site, "DRAWN", tmp_path)
    on_site._index.cache_clear()
    yield tmp_path
    on_site._index.cache_clear()


def test_a_page_of_a_method_gets_its_pictures(gallery):
    text = on_site.on_site("methods/fastv", "# `fastv`\n\n- Stage: decoder\n\nRule.\n")
    head, rest = text.split("Rule.")
    assert head.startswith("# `fastv`\n\n- Stage: decoder\n\n![photograph: what `fastv` keeps](")
    assert "keeps at 40% of the tokens" in head
    for part in ("photograph", "scene"):
        assert f"fastv-{part}.jpg" in head
        assert (gallery / f"fastv-{part}.jpg").stat().st_size > 5000
    assert rest == "\n"
    assert "at 25% of the tokens" in on_site.on_site("methods/divprune", "# d\n\n- a\n\nRule.\n")
    assert "*Not drawn: var needs " in on_site.on_site("methods/var", "# v\n\n- a\n\nRule.\n")


def test_the_overview_gets_contents_and_a_gallery(gallery):
    text = on_site.on_site("methods", "# Methods\n")
    assert text.startswith("# Methods\n\n## What each keeps\n")
    assert "methods/*" in text
    assert "var" not in text
    cells = re.findall(r"\]\(methods/(\w+)\.md\)", text)
    assert cells == ["divprune", "fastv"]


def test_links_out_of_docs_lead_to_pages_of_the_site():
    text = on_site.on_site("extending", "[a](../CONTRIBUTING.md#add-a-method) [b](check.md)")
    assert text == "[a](contributing.md#add-a-method) [b](check.md)"


def test_pages_without_drawn_pictures_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(on_site, "DRAWN", tmp_path)
    on_site._index.cache_clear()
    with pytest.raises(FileNotFoundError, match="run `make docs`"):
        on_site.on_site("methods/fastv", "# `fastv`\n\n- a\n\nRule.\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_the_quickstart_names_every_extra():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "quickstart.md").read_text()
    table = text.split("| extra | for |\n| --- | --- |\n")[1].split("\n\n")[0]
    names = re.findall(r"`([\w-]+)`", " ".join(row.split("|")[1] for row in table.splitlines()))
    assert set(names) == set(project["optional-dependencies"])
