"""docs/models.md says what the tests of the model types prove, and nothing more."""

from __future__ import annotations

import pytest
import scope
import transformers
from subject_models import SUBJECTS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
)

from dev.pages.models import COLUMNS, PAGE, page
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.patches.families.table import OUT_OF_SCOPE, TESTED
from vlmcompress.version import NEWEST_TRANSFORMERS

pytestmark = pytest.mark.skipif(
    transformers.__version__ != NEWEST_TRANSFORMERS, reason="the page is about the newest release"
)
WRITTEN = set(FAMILIES.names())
"""Types whose adapter tests/patches proves, with every subject of `SUBJECTS`."""


@pytest.fixture(scope="module")
def rows():
    """Type -> column -> what the page says."""
    lines = [line for line in page().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {
        row[0].strip("`"): dict(zip(COLUMNS, row, strict=True))
        for row in cells
        if len(row) == len(COLUMNS)
    }


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "python -m dev.pages.models"


def test_every_type_that_transformers_lists_is_there(rows):
    assert set(rows) == set(CLASSES) - set(OUT_OF_SCOPE)
    assert set(rows) <= TESTED
    assert len(rows) >= 65
    for name, reason in OUT_OF_SCOPE.items():
        assert f"| `{name}` | `{CLASSES[name]}` | {reason} |" in page()


def test_a_type_is_cut_between_its_layers_where_the_matrix_cuts_it(rows):
    said = {name for name, row in rows.items() if row["decoder"].startswith("yes")}
    assert said == scope.CUTS | (scope.ELSEWHERE & set(CLASSES))
    assert len(said) >= 60


def test_signals_are_those_that_are_compared_with_eager_attention(rows):
    said = {name for name, row in rows.items() if "tower" in row["signals"]}
    assert said - WRITTEN == set(scope.DESCRIBED)
    assert WRITTEN - said == {"mistral3"}


def test_costs_are_those_that_are_compared_with_what_torch_counts(rows):
    said = {name for name, row in rows.items() if row["costs"] == "yes"}
    assert said == set(scope.COUNTED) | WRITTEN


def test_clips_are_those_that_are_dropped_from(rows):
    said = {name for name, row in rows.items() if row["clips"] == "yes"}
    assert said - WRITTEN == set(scope.CLIPS_HERE)


def test_methods_before_the_projector_are_where_they_are_tested(rows):
    for stage in ("pixels", "encoder"):
        said = {name for name, row in rows.items() if stage in row["before the projector"]}
        assert said - WRITTEN == set(scope.PIXELS)


def test_every_adapter_has_a_subject():
    told = {name.replace("-", "_").replace(".", "_").lower() for name in SUBJECTS}
    for name in WRITTEN:
        assert any(name in one for one in told), name
