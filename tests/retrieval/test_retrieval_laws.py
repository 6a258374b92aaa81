"""The laws of a shortened sequence, for models that give one vector a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from retrievers import SOME, Retriever, batch, entering, retriever

from vlmcompress.api import Compression, compress
from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.laws import references
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.patches.families.parts import ModelParts

TOLERANCE = 1e-4
BUDGETS = {"divprune": "50%", "random": "50%", "fastv": "60%"}


@pytest.fixture(params=SOME)
def found(request: Any) -> Retriever:
    return retriever(request.param)


@pytest.fixture
def page(found):
    return found.page(0, 4, 5)


@pytest.fixture
def two(found, page):
    return batch([page, found.page(1, 3, 4, words=8)])


def reduced(model: Any, method: str) -> Compression:
    return compress(model, method, budget=BUDGETS[method])


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_keeping_all_tokens_changes_not_one_bit(found, page, two, method):
    bare, bare_two = found.vectors(page), found.vectors(two)
    with compress(found.model, method, budget="100%") as c:
        assert torch.equal(found.vectors(page), bare)
        assert not c.report().engaged
        assert torch.equal(found.vectors(two), bare_two)


@pytest.mark.parametrize("method", ["divprune", "random"])
def test_dropping_before_the_decoder_equals_masking(found, page, method):
    bare = found.vectors(page)
    with reduced(found.model, method) as c:
        short = found.vectors(page)[0]
    (image,) = c.report().images
    assert image.after == image.before // 2 + image.before % 2 or image.after == image.before // 2
    keep = entering(page, image, 0)
    masked = found.vectors(page | {"attention_mask": keep[None].long()})[0, keep]
    assert short.shape == masked.shape
    assert (short - masked).abs().max() < TOLERANCE
    assert (masked - bare[0, keep]).abs().max() > 100 * TOLERANCE


def test_dropping_inside_the_decoder_equals_taking_the_tokens_out_there(found, page):
    with reduced(found.model, "fastv") as c:
        short = found.vectors(page)[0]
    (image,) = c.report().images
    parts = ModelParts.of(found.model)
    keep = [entering(page, image, layer)[None] for layer in range(len(parts.layers))]
    assert len({int(each.sum()) for each in keep}) == 2
    bare = {name: value for name, value in page.items() if name != "attention_mask"}
    staged = references.staged(parts, lambda: found.vectors(bare), keep)[0]
    assert short.shape == staged.shape
    assert (short - staged).abs().max() < TOLERANCE
    whole = found.vectors(page)[0, keep[-1][0]]
    assert (short - whole).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_eager_attention_gives_the_same(found, page, method):
    with reduced(found.model, method):
        short = found.vectors(page)
    found.model.set_attn_implementation("eager")
    try:
        with reduced(found.model, method):
            eager = found.vectors(page)
    finally:
        found.model.set_attn_implementation("sdpa")
    assert (short - eager).abs().max() < TOLERANCE


def test_renumbered_positions_are_those_of_a_prompt_without_the_tokens():
    """Of ColQwen2, which takes embeddings and counts their positions itself."""
    found = retriever("colqwen2.5")
    page, given = found.page(0, 4, 5), {}
    lm = ModelParts.of(found.model).lm
    handle = lm.register_forward_pre_hook(
        lambda _, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    found.vectors(page)
    handle.remove()
    with compress(found.model, "divprune", "50%", positions="renumber") as c:
        short = found.vectors(page)
    keep = entering(page, c.report().images[0], 0)
    reference = found.vectors({"inputs_embeds": given["inputs_embeds"][:, keep]})
    assert (short - reference).abs().max() < TOLERANCE
    assert (short - found.vectors(page)[:, keep]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_a_batch_equals_its_members_and_padding_is_zero(found, page, method, left):
    pages = [page, found.page(1, 3, 4, words=8)]
    with reduced(found.model, method):
        alone = [found.vectors(each)[0] for each in pages]
        both = found.vectors(batch(pages, left))
    assert both.shape[1] == max(map(len, alone))
    for row, vectors in zip(both, alone, strict=True):
        tokens = row[row.any(-1)]
        assert tokens.shape == vectors.shape
        assert (tokens - vectors).abs().max() < TOLERANCE


def test_queries_pass_as_they_are(found):
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    query = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    bare = found.vectors(query)
    assert not bare[1, :2].any()
    with reduced(found.model, "divprune"):
        assert torch.equal(found.vectors(query), bare)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_removing_leaves_nothing_behind(found, page, method):
    found.vectors(page)
    before, bare = snapshot(found.model), found.vectors(page)
    with reduced(found.model, method):
        assert snapshot(found.model) != before
        found.vectors(page)
    with pytest.raises(RuntimeError), reduced(found.model, method):
        found.model(**page | {"pixel_values": page["pixel_values"][..., :3]})
    assert snapshot(found.model) == before
    assert torch.equal(found.vectors(page), bare)


def test_signals_of_the_tower_choose_other_tokens_than_chance(found, page):
    kept = {}
    for method in ("visionzip", "random"):
        with compress(found.model, method, budget=8) as c:
            found.vectors(page)
        kept[method] = c.report().images[0].kept
    assert kept["visionzip"] != kept["random"]


def test_a_tuple_is_refused_and_so_is_training(found, page):
    with reduced(found.model, "divprune"):
        with pytest.raises(UnsupportedCallError, match="return_dict=True"):
            found.model(**page, return_dict=False)
        found.model.train()
        try:
            with pytest.raises(UnsupportedCallError, match="eval"):
                found.vectors(page)
        finally:
            found.model.eval()


def test_a_vlm_inside_that_was_not_tested_is_refused(monkeypatch):
    model = retriever("colqwen2").model
    monkeypatch.setattr(type(model.config.vlm_config), "model_type", "qwen9_vl")
    with pytest.raises(UnsupportedModelError, match="around qwen2_vl or qwen2_5_vl, this one"):
        compress(model, "divprune", budget=8)


@pytest.mark.parametrize("budget", ["0.5 flops", "5 ms"])
def test_costs_are_refused_at_once(budget):
    with pytest.raises(UnsupportedModelError, match="no LM head: give a budget of tokens"):
        compress(retriever("colqwen2").model, "divprune", budget)
