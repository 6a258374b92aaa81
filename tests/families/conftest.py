"""The model type that a law is asked of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import transformers
from model_case import Case, case_of
from scope import DOZEN, TESTED_HERE

from vlmcompress.patches.families.table import BROKEN


@pytest.fixture(
    scope="module",
    params=[t if t in DOZEN else pytest.param(t, marks=pytest.mark.slow) for t in TESTED_HERE],
)
def case(request: Any) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = case_of(request.param)
        if (request.param, transformers.__version__) in BROKEN:
            with pytest.raises(AttributeError):
                found.logits(found.single)
            pytest.skip(BROKEN[request.param, transformers.__version__])
        return found
