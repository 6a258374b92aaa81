"""`vlmcompress.embed`: what the model gives, of the tokens that are left, for pages and queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from retriever_processors import inputs_of, pictures, processor
from retrievers import IMAGE, SOME, Retriever, entering, retriever
from torch import Tensor

import vlmcompress
from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.models.loading import load
from vlmcompress.models.names import ASSETS

PAGES = pictures(3)
QUERIES = ["red star", "the blue circle of the page"]


@pytest.fixture(params=SOME)
def found(request: Any) -> Retriever:
    return retriever(request.param)


@pytest.fixture
def tools(found):
    return found.model, processor(found.name)


def rows_of(found: Retriever, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The vectors of each prompt without padding, from the bare model."""
    mask = inputs["attention_mask"].bool()
    return [row[seen] for row, seen in zip(found.vectors(inputs), mask, strict=True)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_pages_and_queries_are_what_the_model_gives(found, tools):
    found.vectors(inputs_of(found.name, PAGES))  # transformers puts hooks of its own on, once
    before = snapshot(found.model)
    assert same(vlmcompress.embed(*tools, PAGES), rows_of(found, inputs_of(found.name, PAGES)))
    queries = rows_of(found, inputs_of(found.name, QUERIES))
    assert same(vlmcompress.embed(*tools, texts=QUERIES), queries)
    assert snapshot(found.model) == before


@pytest.mark.parametrize(("method", "budget"), [("divprune", "50%"), ("fastv", "60%")])
def test_a_method_leaves_the_vectors_of_the_shortened_model(found, tools, method, budget):
    inputs = inputs_of(found.name, PAGES)
    with vlmcompress.compress(found.model, method, budget) as c:
        short = [row[row.any(-1)] for row in found.vectors(inputs)]
        already = vlmcompress.embed(*tools, PAGES)
        images = c.report().images
    assert same(vlmcompress.embed(*tools, PAGES, method=method, budget=budget), short)
    assert same(already, short)
    keep = [entering(inputs, image, 99, row) for row, image in enumerate(images)]
    assert [len(vectors) for vectors in short] == [int(each.sum()) for each in keep]
    visual = vlmcompress.embed(*tools, PAGES, method=method, budget=budget, tokens="visual")
    for vectors, whole, each, ids in zip(visual, short, keep, inputs["input_ids"], strict=True):
        assert torch.equal(vectors, whole[ids[each] == IMAGE])


def test_a_batch_equals_its_members(found, tools):
    for options in ({}, {"method": "divprune", "budget": 8}, {"pool": "rows"}):
        together = vlmcompress.embed(*tools, PAGES, **options)
        alone = vlmcompress.embed(*tools, PAGES, batch_size=1, **options)
        assert [len(each) for each in together] == [len(each) for each in alone]
        for a, b in zip(together, alone, strict=True):
            assert (a - b).abs().max() < 1e-4


def test_several_pools_share_one_run_of_the_model(found, tools):
    calls = []
    handle = found.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        whole, rows = vlmcompress.embed(*tools, PAGES, pool=[None, "rows"], tokens="visual")
    finally:
        handle.remove()
    assert len(calls) == 1
    assert same(whole, vlmcompress.embed(*tools, PAGES, tokens="visual"))
    assert same(rows, vlmcompress.embed(*tools, PAGES, pool="rows", tokens="visual"))
    assert all(len(few) < len(many) for few, many in zip(rows, whole, strict=True))


def test_paths_and_pictures_with_transparency_are_read(tmp_path, found, tools):
    PAGES[0].save(tmp_path / "page.png")
    expected = vlmcompress.embed(*tools, PAGES[:1])
    assert same(vlmcompress.embed(*tools, [tmp_path / "page.png"]), expected)
    assert same(vlmcompress.embed(*tools, [PAGES[0].convert("RGBA")]), expected)


CLIP = ASSETS / "samples" / "runway.mp4"
COLQWEN = (retriever("colqwen2").model, processor("colqwen2"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either images= .pages. or texts= .queries."),
        ({"images": PAGES, "texts": QUERIES}, "give either"),
        ({"texts": QUERIES, "pool": "rows"}, "pool is for pages: queries are embedded whole"),
        ({"texts": QUERIES, "method": "divprune"}, "method is for pages"),
        ({"texts": "red star"}, "give a list of pages or of queries, also for one"),
        ({"images": PAGES[0]}, "give a list of pages"),
        ({"images": PAGES, "budget": 8}, "a budget needs a method"),
        ({"images": PAGES, "tokens": "words"}, "tokens='words' is not possible"),
        ({"images": PAGES, "batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
        ({"images": PAGES, "batch_size": None}, "batch_size must be a whole number"),
        ({"images": 3}, "give a list of pages or of queries, also for one, got 3"),
        ({"images": [None]}, "None is no picture"),
        ({"images": [PAGES]}, "is no picture"),
        ({"images": [CLIP]}, "is a clip: pages are pictures"),
        ({"images": [Image.new("RGB", (2000, 2))]}, "the model's processor refuses the input"),
        ({"texts": ["red star", None]}, "query 1 must be a text, got None"),
        ({"texts": [""]}, "query 0 must be a text, got ''"),
        ({"images": PAGES, "pool": []}, "no pool is given"),
        ({"images": PAGES, "pool": 3}, "3 is no pool: write for example"),
        ({"images": PAGES, "pool": ["rows", 3]}, "3 is no pool"),
        ({"images": PAGES, "pool": "row"}, "unknown pool 'row': did you mean 'rows'"),
        ({"images": PAGES, "pool": "rows(size=2)"}, "unknown option of rows 'size'"),
        ({"images": PAGES, "pool": "rows(window='a')"}, "rows: window must be an integer"),
        ({"images": PAGES, "pool": "rows(window=2)"}, "window must be odd and 1 or more, got 2"),
        ({"images": PAGES, "pool": "hierarchical"}, "one of factor, count and distance, got none"),
        ({"images": PAGES, "pool": "hierarchical(factor=0.5)"}, "factor must be 1 or more"),
        ({"images": PAGES, "pool": "rows("}, "cannot read the pool"),
    ],
)
def test_what_cannot_be_done_is_said(given, message):
    with pytest.raises(VLMCompressError, match=message):
        vlmcompress.embed(*COLQWEN, **given)


def test_nothing_gives_nothing():
    assert vlmcompress.embed(*COLQWEN, []) == vlmcompress.embed(*COLQWEN, texts=[]) == []
    pools = [None, "global", "rows", "hierarchical(factor=2)"]
    for vectors in vlmcompress.embed(
        *COLQWEN, PAGES[:1], method="text-only", pool=pools, tokens="visual"
    ):
        assert [each.shape for each in vectors] == [(0, 16)]


@pytest.mark.parametrize("given", [None, "tiny-colqwen", COLQWEN[1].tokenizer])
def test_a_processor_of_something_else_is_refused(given):
    with pytest.raises(VLMCompressError, match="is no processor of pages and queries"):
        vlmcompress.embed(COLQWEN[0], given, PAGES)


def test_a_model_that_gives_no_vectors_is_refused():
    with pytest.raises(UnsupportedModelError, match="colmodernvbert, colpali, colqwen2"):
        vlmcompress.embed(*load("tiny-qwen"), PAGES)


def test_the_built_in_retriever_is_known_by_name():
    with pytest.raises(VLMCompressError, match="did you mean 'tiny-colqwen'"):
        load("tiny-colqwen2")
