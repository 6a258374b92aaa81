"""Numbers of tokens as they are read."""

import pytest

from vlmcompress.report.numbers import mean_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (36.0, "36"),
        (175 / 3, "58.33"),
        (9.3333333, "9.333"),
        (999.96, "1000"),
        (11520.4, "11520"),
        (1152000.0, "1152000"),
    ],
)
def test_a_mean_has_four_digits_and_no_exponent(value, text):
    assert mean_text(value) == text
