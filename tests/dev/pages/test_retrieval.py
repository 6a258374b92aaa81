"""docs/retrieval.md is what the committed figures say."""

import hashlib
import json

from dev.pages import retrieval
from vlmcompress.models.names import resolve


def test_the_page_is_up_to_date():
    assert retrieval.PAGE.read_text() == retrieval.page()


def test_the_figures_are_of_the_weights_that_ship():
    made = json.loads(retrieval.RESULTS.read_text())["made"]
    (file,) = retrieval.ROOT.glob("vlmcompress/assets/tiny_colqwen/*.safetensors")
    assert resolve(made["model"]) == str(file.parent)
    assert made["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
