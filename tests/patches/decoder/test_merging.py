"""Merging between decoder layers, against the bare model with states replaced and keys closed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import pytest
import torch
from agreeing_answers import agreeing
from bare import bare, last_logits
from built_subjects import subject_of
from kv_cache import cache_in
from mechanisms import MECHANISMS
from oracle import TOLERANCE, drops, masked, more

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError, CompositionError, VLMCompressError
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods.contracts.decoder import DecoderReducer
from vlmcompress.tokens import Reduction


def mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.mean(0)


def similar(rows: torch.Tensor) -> torch.Tensor:
    alike = torch.cosine_similarity(rows, rows.mean(0), dim=-1)
    return (alike / 0.1).softmax(0) @ rows


def oracle(report: Any, subject: Any, inputs: Any, average: Any) -> torch.Tensor:
    """Last-token logits of the bare model: before a layer that merges the state of each group's
    first member becomes the average, and the others are no keys from there on."""
    handles = []
    columns = {row: subject.columns(line) for row, line in enumerate(inputs["input_ids"])}
    images = []
    for row, mine in groupby(report.images, key=lambda image: image.row):
        images += [(i, subject.visual(c)) for i, c in zip(mine, columns[row], strict=False)]

    def replaced(number: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = hidden.clone()
            for image, places in images:
                for group in image.merges[number]:
                    members = hidden[image.row, places[group]]
                    changed[image.row, places[group[0]]] = average(members)
            if args:
                return (changed, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": changed}

        return hook

    for number in report.images[0].merges:
        layer = subject.lm.layers[number]
        handles.append(layer.register_forward_pre_hook(replaced(number), with_kwargs=True))
    try:
        present = drops(report, subject, inputs)
        hidden = masked(report, subject, inputs, present, "eager")
    finally:
        for handle in handles:
            handle.remove()
    return subject.model.lm_head(hidden[:, -1])


SPECS = [
    ("pool(stage='decoder')", None, mean),
    ("pool(stage='decoder', layers=(1, 3))", "60%", mean),
    ("pool(stage='decoder', layers=(2,), weights='similar')", "70%", similar),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("spec", "budget", "average"), SPECS)
@pytest.mark.parametrize("name", list(MECHANISMS))
def test_merging_equals_replacing_and_masking(name, spec, budget, average, attention):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9))
    subject.model.set_attn_implementation("sdpa")
    full = bare(subject, inputs).logits
    before = snapshot(subject.model)
    subject.model.set_attn_implementation(attention)
    with compress(subject.model, spec, budget) as c:
        short = last_logits(subject, inputs)
        report = c.report()
    subject.model.set_attn_implementation("sdpa")
    assert snapshot(subject.model) == before
    for image in report.images:
        assert image.merges
        assert image.after == image.before
        for layer, groups in image.merges.items():
            assert [group[0] for group in groups] == image.cuts[layer]
            assert max(map(len, groups)) > 1
        if budget is not None:
            assert image.mean <= float(budget[:-1]) / 100 * image.before + 1e-6
    expected = oracle(report, subject, inputs, average)
    assert (short - expected).abs().max() < TOLERANCE
    assert (short - full).abs().max() > 100 * TOLERANCE
    # The averages matter, not only what is closed.
    only_closed = oracle(report, subject, inputs, lambda rows: rows[0])
    assert (short - only_closed).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["random llava", "random qwen3-vl with clips", "random gemma3"])
def test_answers_beams_and_rows_alone(name):
    subject, spec = subject_of(name), "pool(stage='decoder', layers=(1, 3))"
    prompts = [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]
    inputs = subject.batch(*prompts)
    with compress(subject.model, spec, "60%"):
        agreeing(subject, prompts, inputs)


def test_layers_before_keep_what_they_cached():
    """A cache that is gone on with: all tokens below the merge, groups from it on."""
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(1, 1, text=4))
    with compress(subject.model, "pool(stage='decoder', layers=(2,))") as c:
        out = subject.generate(inputs, return_dict_in_generate=True, max_new_tokens=3)
    (image,) = c.report().images
    assert image.per_layer == [36, 36, 9, 9, 9, 9]
    length = inputs["input_ids"].shape[1] + 2
    held = [layer.keys.shape[2] for layer in cache_in(out).layers]
    assert held == [length, length, *[length - 27] * 4]


def test_a_second_turn_goes_on_from_the_groups():
    subject, spec = subject_of("random llava"), "pool(stage='decoder', layers=(2,))"
    first, second = subject.prompt(1, 8, text=4), subject.prompt(1, 10)
    inputs = subject.batch(first)
    with compress(subject.model, spec) as c:
        out = subject.generate(inputs, return_dict_in_generate=True)
        one = c.report()
        rest = torch.tensor([second[0]])
        ids = torch.cat([out.sequences, rest], 1)
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole |= subject.images([first[1], second[1]])
        logits = more(subject, whole, cache_in(out), subject.images([second[1]]))
        two = c.report()
    images = [*one.images, *two.images]
    together = type(one)(**{**vars(one), "images": images})
    expected = oracle(together, subject, whole, mean)
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("budget", ["100%", 36])
def test_everything_is_a_no_op(budget):
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(1, 1))
    full = bare(subject, inputs).logits
    with compress(subject.model, "pool(stage='decoder')", budget) as c:
        assert torch.equal(last_logits(subject, inputs), full)
    assert not c.report().engaged


@dataclass(frozen=True)
class Says(DecoderReducer):
    """Merges as it is told."""

    name: ClassVar[str] = "says"
    summary: ClassVar[str] = "says"
    what: Any

    def schedule(self, layers: int, tokens: int, budget: Any) -> dict[int, int]:
        return {2: 5}

    def merge(self, hidden: Any, grids: Any, count: int) -> Any:
        return self.what(hidden, count)


def made(hidden: torch.Tensor, members: list[int], offsets: list[int]) -> Reduction:
    states = hidden[: len(offsets) - 1]
    return Reduction(states, torch.tensor(members), torch.tensor(offsets))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda hidden, count: hidden[:count], "says gave no Reduction"),
        (lambda hidden, count: made(hidden, [0, 1], [0, 1, 2]), "2 tokens where 5 were due"),
        (lambda hidden, count: made(hidden, [0, 1, 2, 4, 3], [0, 1, 2, 3, 4, 5]), "groups that"),
        (lambda hidden, count: made(hidden, [0, 1, 2, 3, 36], [0, 1, 2, 3, 4, 5]), "groups that"),
        (
            lambda hidden, count: made(hidden[:, :3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]),
            "shape .5, 3. for 5 groups",
        ),
    ],
)
def test_what_a_method_says_is_not_believed(what, words):
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(1, 1))
    with (
        compress(subject.model, Says(what)),
        pytest.raises(VLMCompressError, match=words) as error,
    ):
        last_logits(subject, inputs)
    assert "\n" not in str(error.value)
    last_logits(subject, inputs)


def test_what_it_refuses():
    model = subject_of("random llava").model
    with pytest.raises(BudgetError, match=r"pool before the layers 1, 3, 4 cannot keep fewer than"):
        compress(model, "pool(stage='decoder')", "5%")
    with pytest.raises(CompositionError, match="needs all tokens on their grid"):
        compress(model, "divprune+pool(stage='decoder')", "50%")
    with pytest.raises(BudgetError, match="must cut before one of the layers 1 to 5"):
        compress(model, "pool(stage='decoder', layers=(9,))", "50%")
