"""Every type that transformers lists is tested or listed as out of scope, and refused as that."""

import pytest
from scope import DOZEN, ELSEWHERE, TESTED_HERE, VOID
from shrink import CLASSES, build
from torch import nn

from vlmcompress.api import compress, list_models
from vlmcompress.errors import UnsupportedModelError, UntestedModelWarning
from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.families.registry import FAMILIES, family_of
from vlmcompress.patches.families.table import CLIPS, OUT_OF_SCOPE, ROWS, TESTED, UNSCORED


def test_every_type_that_transformers_lists_is_known():
    unknown = sorted(set(CLASSES) - TESTED - OUT_OF_SCOPE.keys())
    assert not unknown, (
        f"transformers lists {', '.join(unknown)}: add each to TESTED in patches/families/table.py "
        "and run `pytest tests/families -m slow -k NAME` (tests/families/overrides.py and media.py "
        "have what cannot be guessed), or to OUT_OF_SCOPE there with the reason"
    )


def test_the_tables_agree():
    assert not TESTED & OUT_OF_SCOPE.keys()
    assert ROWS.keys() | UNSCORED | CLIPS <= TESTED
    assert set(FAMILIES.names()) <= TESTED
    assert {name for name, _ in VOID} | ELSEWHERE <= TESTED
    assert len(set(DOZEN) & TESTED) == 12
    assert set(TESTED_HERE) | ELSEWHERE >= TESTED & CLASSES.keys()


def test_three_states():
    infos = {info.name: info for info in list_models()}
    assert infos["qwen3_5"].state == "tested"
    assert infos["mllama"].state == "refused"
    assert "cross-attention" in infos["mllama"].reason
    assert {info.state for info in infos.values()} <= {"tested", "by structure", "refused"}
    assert list(infos)[: len(FAMILIES.names())] == FAMILIES.names()


@pytest.mark.parametrize("name", ["blip", "mllama"])
def test_a_type_out_of_scope_is_refused_with_the_reason(name):
    with pytest.raises(UnsupportedModelError) as error:
        family_of(build(name))
    assert OUT_OF_SCOPE[name] in str(error.value)
    assert f"model_type {name!r}" in str(error.value)


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(UnsupportedModelError, match="no configuration"):
        family_of(nn.Linear(1, 1))


def test_an_unknown_type_works_by_structure_with_one_warning(recwarn):
    model = build("glm4v")
    compress(model, "divprune", budget="50%").remove()
    assert not [w for w in recwarn if w.category is UntestedModelWarning]
    model.config.model_type = "glm9v"
    with pytest.warns(UntestedModelWarning, match="glm9v works by its structure") as found:
        compress(model, "divprune", budget="50%").remove()
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("budget", ["0.5 flops", "100 ms"])
def test_a_cost_is_refused_where_it_is_not_known(budget):
    with pytest.raises(UnsupportedModelError, match="FLOPs of a got_ocr2 model are not known"):
        compress(build("got_ocr2"), "divprune", budget=budget)


def test_auto_works_with_any_type():
    model = build("qwen3_5")
    with compress(model, "auto", budget="25%") as c:
        assert "fastv" not in c.report().method
    assert engine_of(model) is None


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_an_unknown_kind_of_layer_is_refused_at_every_stage(method):
    model = build("glm4v")
    model.model.language_model.config.layer_types = ["full_attention", "helical_attention"] * 2
    with pytest.raises(UnsupportedModelError, match="not known: helical_attention; known are"):
        compress(model, method, budget="50%")
    assert engine_of(model) is None


def test_tiles_with_marks_between_them_are_one_image():
    model = build("llama4")
    family = family_of(model)
    token, end = family.placeholders(model)["image"], model.config.eoi_token_index

    def joined(*between):
        ids = [5, token, token, *between, token, token, 6]
        return family.continues(ids, [[1, 2], [3 + len(between), 4 + len(between)]])

    assert joined() == joined(7) == joined(7, 8) == [False, True]
    assert joined(end) == joined(end, 7) == joined(7, 8, 9) == [False, False]
