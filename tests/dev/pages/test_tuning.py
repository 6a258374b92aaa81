"""docs/tuning.md beside the committed profiles."""

import numpy as np
import pytest

from dev.pages import committed_results as committed
from dev.pages import tuning


def test_the_page_is_up_to_date():
    assert tuning.page() == tuning.PAGE.read_text(encoding="utf-8")


def test_what_labels_buy():
    one, other = np.zeros(100), np.zeros(100)
    one[:60] = 1
    assert tuning.with_labels([one]) == pytest.approx(0.6, abs=0.01)
    other[:90] = 1
    assert tuning.with_labels([one, other]) == pytest.approx(0.9, abs=0.01)
    # Of many that are equal the best is picked by chance, which buys nothing.
    rng = np.random.default_rng(0)
    equal = list((rng.random((20, 4000)) < 0.6).astype(np.float64))
    assert tuning.with_labels(equal) == pytest.approx(0.6, abs=0.02)
    assert max(scores.mean() for scores in equal) > 0.61


def test_every_choice_has_answers():
    assert "| - |" not in tuning.tables()


def made_up(choice):
    """A profile of tiny-llava that takes one method at each budget."""
    row = {"method": choice, "n": 320}
    return {
        "complete": True,
        "budgets": {"50%": {"rows": [row]}, "6.25%": {"rows": [row]}},
        "made": {
            "samples": 320,
            "seed": 5,
            "device": "CPU",
            "dtype": "float32",
            "date": "2026-11-30",
            "versions": {"torch": "2", "transformers": "5"},
        },
    }


def test_a_table_by_hand():
    text = tuning.tables({("tiny-llava", "pictures"): made_up("stride")})
    task = committed.results("tiny-llava")["tasks"]["pictures"]
    right = {row["budget"]: row for row in task["cases"] if row["method"] == "stride"}
    for budget in ("50%", "6.25%"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {budget} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:3] == ["320", "`stride`"]
        assert cells[3].startswith(f"{100 * right[budget]['accuracy']:.1f} (")
        assert cells[6].startswith("**-")
    assert "Within 1 point of the best in hindsight at 0 of 2 budgets" in text
    best = tuning.tables({("tiny-llava", "pictures"): made_up("mmtok+pyramiddrop")})
    (line,) = (line for line in best.splitlines() if line.startswith("| 6.25% |"))
    assert "| +0.0 (" in line
    assert "at 1 of 2 budgets" in best or "at 2 of 2 budgets" in best


def test_what_was_not_measured_is_a_dash():
    text = tuning.tables({("tiny-llava", "pictures"): made_up("divprune+dart")})
    (line,) = (line for line in text.splitlines() if line.startswith("| 6.25% |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (cells[3], cells[6]) == ("-", "-")
    assert "at 0 of 2 budgets" in text
