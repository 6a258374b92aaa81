"""What is taken where nobody says otherwise is there."""

from typer.testing import CliRunner

from vlmcompress import defaults
from vlmcompress.budget.budget import Budget
from vlmcompress.cli import app
from vlmcompress.methods.registry import METHODS
from vlmcompress.models.names import BUILT_IN


def test_the_defaults_exist():
    assert defaults.METHOD in METHODS.names()
    assert {defaults.MODEL, defaults.VIDEO_MODEL} <= set(BUILT_IN)
    assert [str(Budget.parse(text)) for text in defaults.EVAL_BUDGETS.split(",")]
    assert str(Budget.parse(defaults.BUDGET)) == defaults.BUDGET


def test_help_says_them():
    for command, words in (
        ("ask", (defaults.METHOD, defaults.BUDGET, defaults.MODEL, defaults.VIDEO_MODEL)),
        ("profile", (defaults.METHOD, defaults.BUDGET, defaults.MODEL)),
        ("eval", (defaults.METHOD, defaults.EVAL_BUDGETS, defaults.MODEL)),
        ("calibrate", (defaults.MODEL,)),
    ):
        text = CliRunner().invoke(app, [command, "--help"]).output
        flat = "".join(text.split())
        for word in words:
            assert word in flat, (command, word)
