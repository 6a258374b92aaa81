"""Methods that look at more than one row of attention, under the laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import last_logits
from oracle import BUDGET, TOLERANCE, oracle, second_turn
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.methods.aim_prune import AimPrune
from vlmcompress.methods.clse import CLSE
from vlmcompress.methods.corematching import CoreMatching
from vlmcompress.methods.dart import DART
from vlmcompress.methods.feather import Feather
from vlmcompress.methods.priortr import PriorTR
from vlmcompress.methods.todre_exit import TodreExit
from vlmcompress.methods.var import VAR
from vlmcompress.ops.elbow import elbow
from vlmcompress.ops.spectrum import evolution, high_frequency
from vlmcompress.tokens import Grid

METHODS = {
    "feather": (Feather(), "55%"),
    "feather with the union": (Feather(fixed=False, ratio=0.9), None),
    "aim-prune": (AimPrune(), "55%"),
    "corematching": (CoreMatching(), "55%"),
    "corematching with the elbow": (CoreMatching(), None),
    "var": (VAR(dims=(1, 4)), "55%"),
    "var with sinks": (VAR(dims=(1, 4), tau=1.2), None),
    "dart": (DART(), "55%"),
    "todre-exit": (TodreExit(tau=1.0), None),
    "clse": (CLSE(), "50%"),
}


@pytest.fixture(params=["random llava", "random qwen2.5-vl", "random gemma3"], scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return SUBJECTS[request.param]()


@pytest.fixture(params=list(METHODS))
def case(request: pytest.FixtureRequest) -> Any:
    return METHODS[request.param]


def test_dropping_equals_masking_in_a_padded_batch(model, case):
    method, budget = case
    inputs = model.batch(model.prompt(1, 3, text=4), model.prompt(2, 4, text=9))
    bare = last_logits(model, inputs)
    with compress(model.model, method, budget=budget) as c:
        short = last_logits(model, inputs)
    report = c.report()
    assert report.engaged
    assert (short - oracle(report, model, inputs)).abs().max() < TOLERANCE
    assert (short - bare).abs().max() > 100 * TOLERANCE


@pytest.mark.rotating(axis="model", by="case", count=1)
def test_generating_with_a_cache_equals_recomputing_every_step(model, case):
    method, budget = case
    inputs = model.batch(model.prompt(1, 3, text=4), model.prompt(2, 4, text=9))
    with compress(model.model, method, budget=budget):
        cached = model.generate(inputs)
        assert torch.equal(cached, model.generate(inputs, use_cache=False))


@pytest.mark.rotating(axis="model", by="case", count=1)
def test_a_batch_equals_its_members(model, case):
    method, budget = case
    prompts = [model.prompt(1, 3, text=4), model.prompt(2, 4, text=9), model.prompt(0, 5)]
    with compress(model.model, method, budget=budget) as c:
        together = last_logits(model, model.batch(*prompts))
        images = c.report().images
        for row, prompt in enumerate(prompts):
            alone = last_logits(model, model.batch(prompt))[0]
            assert (together[row] - alone).abs().max() < TOLERANCE
            if prompt[1].numel():
                mine = [image.cuts for image in images if image.row == row]
                assert mine == [image.cuts for image in c.report().images]


@pytest.mark.parametrize("name", ["aim-prune", "corematching with the elbow", "dart", "feather"])
def test_a_second_turn_with_a_new_image_equals_the_whole_masked(name, monkeypatch):
    subject = SUBJECTS["random llava"]()
    monkeypatch.setitem(BUDGET, METHODS[name][0], METHODS[name][1])
    report, whole, logits = second_turn(subject, METHODS[name][0], 1)
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


@torch.no_grad()
def test_corematching_counts_the_neurons_of_the_bare_model():
    subject, seen = SUBJECTS["random qwen2.5-vl"](), {}
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(1, 4, text=9))
    down = subject.lm.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: seen.update(fired=args[0] > 0))
    last_logits(subject, inputs)
    handle.remove()
    with compress(subject.model, CoreMatching()) as c:
        last_logits(subject, inputs)
    for image in c.report().images:
        fired = seen["fired"][image.row].long()
        (columns,) = subject.columns(inputs["input_ids"][image.row])
        scores = (fired[columns] * fired[-1]).sum(1)
        assert image.cuts[2] == (scores > elbow(scores)).nonzero()[:, 0].tolist()
        assert 0 < len(image.cuts[2]) < image.before


@torch.no_grad()
@pytest.mark.parametrize("name", ["random llava", "random qwen3-vl with clips"])
def test_clse_compares_what_entered_a_layer_with_what_left_it(name):
    subject, seen = SUBJECTS[name](), {}
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(1, 4, text=9))

    def look(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            seen[layer] = args[0] if args else kwargs["hidden_states"]

        return subject.lm.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)

    handles = [look(layer) for layer in (0, 1)]
    last_logits(subject, inputs)
    for handle in handles:
        handle.remove()
    with compress(subject.model, CLSE()) as c:
        last_logits(subject, inputs)
    attention = oracle(c.report(), subject, inputs, 0)
    for image in c.report().images:
        (columns,) = subject.columns(inputs["input_ids"][image.row])
        columns = subject.visual(columns)
        before, after = (
            high_frequency(seen[layer][image.row, columns], Grid(*image.grid), 0.1)
            for layer in (0, 1)
        )
        plain = attention[image.row, :, -1].mean(0)[columns]
        scores = plain * evolution(before, after, 0.1)
        kept, count = image.cuts[1], round(330 / 576 * image.before)
        assert kept == scores.topk(len(kept)).indices.sort().values.tolist()
        assert abs(len(kept) - count) <= 1
        assert kept != plain.topk(len(kept)).indices.sort().values.tolist()


@torch.no_grad()
def test_todre_exit_reads_the_eager_attention_of_the_text():
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(1, 4, text=9))
    with compress(subject.model, TodreExit(tau=0.0)) as c:
        last_logits(subject, inputs)
    attention = oracle(c.report(), subject, inputs, 5)
    for row, ids in enumerate(inputs["input_ids"]):
        (columns,) = subject.columns(ids)
        text = attention[row, :, int(columns[-1]) + 1 :][:, :, columns]
        mass = float(text.sum(-1).mean())
        for tau, left in ((mass - 1e-3, 36), (mass + 1e-3, 0)):
            with compress(subject.model, TodreExit(tau=tau)) as c:
                last_logits(subject, inputs)
            assert c.report().images[row].per_layer == [36] * 5 + [left]


@torch.no_grad()
def test_aim_prune_drops_what_powers_of_eager_attention_say():
    subject = SUBJECTS["random gemma3"]()
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(1, 4, text=9))
    with compress(subject.model, AimPrune(l1=1, temperature=1.0)) as c:
        last_logits(subject, inputs)
    report = c.report()
    attention = oracle(report, subject, inputs, 1)
    for image in report.images:
        valid = inputs["attention_mask"][image.row].float()
        mass = valid.expand(4, 1, -1)
        for _ in range(5):
            mass = mass @ (attention[image.row] * valid[:, None])
        (columns,) = subject.columns(inputs["input_ids"][image.row])
        scores = mass[:, 0, columns].square().mean(0).sqrt()
        dropped = [place for place in range(9) if place not in image.cuts[2]]
        assert len(dropped) == 2
        assert scores[dropped].max() < scores[image.cuts[2]].min()


@pytest.mark.parametrize("name", ["random llava", "random llava-next", "random qwen2.5-vl"])
@torch.no_grad()
def test_priortr_compares_the_question_with_the_token_after_each_image(name):
    subject = SUBJECTS[name]()
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9))
    with compress(subject.model, PriorTR(k=2), budget="60%") as c:
        last_logits(subject, inputs)
    report = c.report()
    attention, others = oracle(report, subject, inputs, 1), 0
    for image in report.images:
        spans = subject.columns(inputs["input_ids"][image.row])
        first = next(i.index for i in report.images if i.row == image.row)
        span, mean = spans[image.index - first], attention[image.row].mean(0)
        columns, behind = subject.visual(span), int(span[-1]) + 1
        p, q = mean[int(spans[-1][-1]) + 1 :, columns].mean(0), mean[behind, columns]
        for prior, kept in ((q, True), (p.flip(0), False)):
            scores = p / p.sum() * (p / p.sum() / (prior / prior.sum())).log()
            best = scores.topk(len(image.cuts[2])).indices.sort().values.tolist()
            assert (best == image.cuts[2]) == kept
        others += len(spans) > 1
    assert others == 2
