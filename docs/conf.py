"""How Sphinx builds the site: `make docs`. Offline; warnings are errors."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.pages.pictures.on_site import on_site  # noqa: E402
from vlmcompress.version import __version__  # noqa: E402

project = "vlmcompress"
author = "the vlmcompress authors"
project_copyright = "2026, the vlmcompress authors. Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["attrs_block", "attrs_inline"]
myst_heading_anchors = 4
exclude_patterns = ["README.md"]

highlight_language = "bash"

default_role = "literal"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"vlmcompress {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"


def _prepare(app, docname, source):
    """What a page is on the site and is not in the repository."""
    source[0] = on_site(docname, source[0])


def setup(app):
    app.connect("source-read", _prepare)
