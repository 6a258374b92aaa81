"""Budgets of any kind and size: read as the rule says, or refused in one line."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_line import tried

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import VLMCompressError
from vlmcompress.tokens import Grid, Layout

KINDS = [int, str, np.int64, lambda n: np.array(n), torch.tensor, float, lambda n: f"{n}.0"]
"""What an integer of 2 or more may come as."""
SHARES = [float, np.float64, lambda x: torch.tensor(x, dtype=torch.float64), np.array, Fraction]


@given(st.integers(2, 10**12), st.sampled_from(KINDS))
def test_an_integer_of_any_kind_is_a_count(count, kind):
    assert Budget.parse(kind(count)) == Budget(count, "tokens")


@given(st.floats(0, 1, exclude_min=True), st.sampled_from(SHARES))
def test_a_broken_number_up_to_one_is_a_share(share, kind):
    budget = Budget.parse(kind(share))
    assert budget.unit == "percent"
    assert math.isclose(budget.amount, 100 * share, rel_tol=1e-9)
    assert 0 < budget.amount <= 100


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"\s*[+-]?\d{0,5}\.?\d{0,5}\s*(%|flops|ms|per frame)?\s*", fullmatch=True),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.binary(max_size=4),
        st.lists(st.integers(), max_size=2),
        st.complex_numbers(),
        st.sampled_from(["9" * 400, "9" * 400 + " ms", 10**400, -(10**5000), "inf ms", "nan"]),
    )
)
def test_anything_is_read_or_refused_in_one_line_and_prints_as_it_reads(given):
    budget = tried(lambda: Budget.parse(given))
    if budget is None:
        return
    assert 0 < budget.amount < math.inf
    assert Budget.parse(budget) == budget
    assert Budget.parse(str(budget)) == budget
    if budget.unit == "tokens":
        assert budget.amount == int(budget.amount)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1),
    st.one_of(st.integers(1, 500), st.floats(0.001, 1.0)),
    st.booleans(),
)
def test_an_image_has_at_least_one_token_and_at_most_its_own(sides, given, per_frame):
    layout = Layout.of(*(Grid(*each) for each in sides))
    text = f"{given} per frame" if per_frame else given
    tokens = Budget.parse(text).tokens(layout)
    assert 1 <= tokens <= len(layout)
    assert tokens == int(tokens)


@given(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)))
def test_grids_have_no_negative_side(sides):
    if min(sides) < 0:
        with pytest.raises(VLMCompressError, match="0 or more tokens along each side"):
            Grid(*sides)
    else:
        assert len(Grid(*sides)) == math.prod(sides)
