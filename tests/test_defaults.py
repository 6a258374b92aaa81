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
    asked = (defaults.METHOD, defaults.BUDGET, defaults.MODEL, defaults.VIDEO_MODEL)
    drawn = (defaults.METHOD, defaults.EVAL_BUDGETS, defaults.MODEL)
    for command, words in (
        ("ask", (*asked, defaults.ANSWER_TOKENS)),
        ("chat", (defaults.ANSWER_TOKENS,)),
        ("profile", (defaults.METHOD, defaults.BUDGET, defaults.MODEL, defaults.PROFILE_WORDS)),
        ("eval", (*drawn, defaults.EVAL_LIMIT, defaults.EVAL_BATCH)),
        ("calibrate", (defaults.MODEL, defaults.CALIBRATE_TOLERANCE)),
    ):
        text = CliRunner().invoke(app, [command, "--help"]).output
        flat = "".join(text.split())
        for word in words:
            assert str(word) in flat, (command, word)
