"""A budget in FLOPs is for the prompt, whatever is written meanwhile and read again."""

import pytest
import torch
from built_subjects import subject_of

from vlmcompress.api import compress
from vlmcompress.patches.cost.budget_solver import Solver

WAYS = {
    "with a cache": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 2},
    "beams without a cache": {"use_cache": False, "num_beams": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("spec", ["divprune+fastv", "unit-drop+divprune"])
def test_a_share_is_found_once_and_for_the_prompt_alone(spec, way, monkeypatch):
    """With what was written the share of `unit-drop+divprune` would be another one."""
    subject = subject_of("random qwen2.5-vl")
    ids, pixels = subject.prompt(1, 7)
    prompt = ids + ids[:3] + ids[-6:] + ids[:3]  # with something to look up
    inputs = subject.batch((prompt, pixels))
    seen, solve = [], Solver.solve
    monkeypatch.setattr(
        Solver, "solve", lambda self, one, encoder: seen.append(one) or solve(self, one, encoder)
    )
    options = WAYS[way]
    with compress(subject.model, spec, "0.8 flops") as c:
        greedy = subject.generate(inputs, max_new_tokens=8)
        seen.clear()
        found = subject.generate(inputs, max_new_tokens=8, **options)
    (solved,), rows = seen, options.get("num_beams", 1)
    assert solved.text == [len(prompt) - 36] * rows
    assert len(solved.images) == rows
    report = c.report()
    assert report.measured == pytest.approx(report.predicted)
    assert report.measured < 0.8
    if rows == 1:
        assert torch.equal(found, greedy)
