"""Distributions over a given answer, and what no method may see of it."""

import math

import pytest
import torch
from raced import Copier, drawn
from transformers import LogitsProcessor, LogitsProcessorList

from vlmcompress.api import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.answering import Batch
from vlmcompress.eval.run.cases import Case
from vlmcompress.prompts import generate
from vlmcompress.tuning.likeness import divergence, forced, likeness, reference
from vlmcompress.tuning.measurements import BLIND, WHOLE

LONGEST = 5


class Told(LogitsProcessor):
    """The next token is the one that is given."""

    def __init__(self, ids, start):
        self.ids, self.start = ids, start

    def __call__(self, input_ids, scores):
        forbidden = torch.full_like(scores, -math.inf)
        place = input_ids.shape[1] - self.start
        return forbidden.scatter(1, self.ids[:, place : place + 1], 0.0)


def stepwise(handle, inputs, ids):
    """[B, T, words]: token after token, as `generate` decodes."""
    told = LogitsProcessorList([Told(ids, inputs["input_ids"].shape[1])])
    found = handle.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=ids.shape[1],
        min_new_tokens=ids.shape[1],
        logits_processor=told,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(found.logits, 1).float().log_softmax(-1)


@pytest.fixture(scope="module")
def asked(tiny_llava, tiny_qwen):
    """Model, processor and a batch whose questions are of different lengths."""
    found = {}
    for name, loaded, task in (
        ("pictures", tiny_llava, "pictures"),
        ("clips", tiny_qwen, "clips"),
        ("one", tiny_qwen, "pictures"),
    ):
        samples = drawn(task, 1 if name == "one" else 4)
        found[name] = (*loaded, Batch(*loaded, samples).inputs(WHOLE))
    return found


SPECS = [
    ("full", None),
    ("divprune", "25%"),
    ("pool", "25%"),
    ("cdpruner(negate=False)", "25%"),
    ("pyramiddrop", "50%"),
    ("scope+fastv", "25%"),
    ("restore(divprune)", "25%"),
    ("mctf(stage='projector')+pyramiddrop", "25%"),
]


@pytest.mark.parametrize("name", ["pictures", "clips", "one"])
@pytest.mark.parametrize(("method", "budget"), SPECS)
def test_a_chunk_on_the_cache_is_token_after_token(asked, name, method, budget):
    model, processor, inputs = asked[name]
    ids = torch.randint(5, 40, (len(inputs["input_ids"]), LONGEST), generator=torch.manual_seed(0))
    with compress(model, method, budget, processor=processor) as handle:
        at_once = forced(handle, inputs, ids).log_probs
        in_turn = stepwise(handle, inputs, ids)
    torch.testing.assert_close(at_once, in_turn, atol=2e-4, rtol=0)
    # It matters what was said before, and what is kept of the picture.
    with compress(model, method, budget, processor=processor) as handle:
        other = forced(handle, inputs, ids.flip(1)).log_probs
    assert (other[:, 1:] - at_once[:, 1:]).abs().max() > 0.1
    assert torch.equal(other[:, 0], at_once[:, 0]), "nothing was said before the first token"


def test_the_whole_model_is_like_itself(asked):
    model, processor, inputs = asked["pictures"]
    whole = reference(model, processor, inputs, LONGEST)
    found = likeness(model, processor, inputs, WHOLE, whole)
    assert (found.kl, found.agrees) == ([0.0] * 4, [True] * 4)
    assert found.before == [144] * 4
    blind = likeness(model, processor, inputs, BLIND, whole)
    assert min(blind.kl) > 0.01
    assert not all(blind.agrees)
    assert blind.mean == [0.0] * 4
    with compress(model, "text-only") as handle:
        other = forced(handle, inputs, whole.ids).log_probs
    for kl, p, q in zip(blind.kl, whole.log_probs, other, strict=True):
        by_hand = sum(
            a.exp() * (a - b) for a, b in zip(p.flatten(), q[: len(p)].flatten(), strict=True)
        )
        assert kl == pytest.approx(float(by_hand) / len(p), rel=1e-3)


@pytest.mark.parametrize("budget", ["50%", "6.25%"])
def test_agreement_is_the_same_greedy_answer(tiny_llava, budget):
    model, processor = tiny_llava
    inputs = Batch(*tiny_llava, drawn("pictures", 16)).inputs(WHOLE)
    whole = reference(model, processor, inputs, LONGEST)
    case = Case("stride", budget)
    found = likeness(model, processor, inputs, case, whole)
    plain = generate(model, processor, inputs, max_new_tokens=LONGEST).texts
    with compress(model, case.method, case.budget):
        reduced = generate(model, processor, inputs, max_new_tokens=LONGEST).texts
    assert found.agrees == [a == b for a, b in zip(plain, reduced, strict=True)]
    assert set(found.agrees) == {True, False}


def test_answers_end_where_the_model_ends_them(asked):
    model, processor, inputs = asked["pictures"]
    whole = reference(model, processor, inputs, LONGEST)
    ends = model.generation_config.eos_token_id
    for row, said, expected in zip(whole.ids, whole.said, whole.log_probs, strict=True):
        assert row[said][-1] == ends
        assert ends not in row[said][:-1]
        assert torch.equal(expected.argmax(-1), row[said])


def test_divergence_by_hand():
    whole = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    other = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]).log()
    expected = torch.tensor([0.5 * math.log(2), math.log(4)])
    torch.testing.assert_close(divergence(whole, other), expected)
    assert divergence(whole, whole).tolist() == [0, 0]


def test_what_is_no_distribution_is_refused(asked, monkeypatch):
    model, processor, inputs = asked["pictures"]
    whole = reference(model, processor, inputs, LONGEST)
    spoil = model.lm_head.register_forward_hook(lambda *call: call[2] * math.nan)
    try:
        with pytest.raises(VLMCompressError, match="divprune at 25% gives no distribution"):
            likeness(model, processor, inputs, Case("divprune", "25%"), whole)
    finally:
        spoil.remove()


@pytest.mark.usefixtures("cheats")
def test_no_method_sees_the_answer(asked):
    """In one forward of prompt and answer it would."""
    model, processor, inputs = asked["one"]
    whole = reference(model, processor, inputs, LONGEST)
    likeness(model, processor, inputs, Case("copier", "25%"), whole)
    (alone,) = Copier.shown
    with compress(model, "copier", "25%", processor=processor):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert torch.equal(alone, Copier.shown[-1])
    leaky = dict(inputs)
    leaky["input_ids"] = torch.cat([inputs["input_ids"], whole.ids], 1)
    leaky["attention_mask"] = torch.ones_like(leaky["input_ids"])
    kinds = inputs["mm_token_type_ids"]
    leaky["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(whole.ids.shape)], 1)
    with compress(model, "copier", "25%"), torch.inference_mode():
        model(**leaky)
    assert len(Copier.shown[-1]) > len(alone)
    with torch.inference_mode():
        said = model.get_input_embeddings()(whole.ids[0, -2])  # before the end
    assert torch.equal(Copier.shown[-1][-1], said)
    assert not torch.equal(alone[-1], said)
