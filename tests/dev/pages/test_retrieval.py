"""docs/retrieval.md is what the committed figures say."""

import hashlib
import json

from dev.pages import retrieval
from vlmcompress.models.names import resolve


def test_the_page_is_up_to_date():
    assert retrieval.PAGE.read_text() == retrieval.page()


def test_the_fewest_vectors_that_cost_nothing_are_named():
    def row(where, name, vectors, low, high):
        interval = [low, high]
        return {"where": where, "name": name, "vectors": vectors} | {
            "ndcg_difference_interval": interval
        }

    rows = [
        row("full", "all", 1, 0, 0),
        row("after it", "worse", 4, -0.2, -0.1),
        row("after it", "even", 9, -0.2, 0.1),
        row("after it", "more", 20, -0.1, 0.1),
        row("two stages", "both", 3, 0, 0.1),
    ]
    assert retrieval._reading(rows).endswith(
        "9 in one stage (`even`) and 3 in the first of two stages (`both`)."
    )
    assert retrieval._reading(rows[:2]).endswith(": none.")


def test_the_figures_are_of_the_weights_that_ship():
    made = json.loads(retrieval.RESULTS.read_text())["made"]
    (file,) = retrieval.ROOT.glob("vlmcompress/assets/tiny_colqwen/*.safetensors")
    assert resolve(made["model"]) == str(file.parent)
    assert made["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
