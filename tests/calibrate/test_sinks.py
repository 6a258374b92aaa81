"""Sink dimensions of a model, against hooks."""

from __future__ import annotations

import pytest
import torch
from subject_models import SUBJECTS

from vlmcompress.calibrate.sinks import calibrate
from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.sinks import sink_dimensions


@torch.no_grad()
def test_the_first_tokens_that_enter_layers_2_to_half_the_depth_are_looked_at():
    subject, seen = SUBJECTS["random llava"](), []
    batch = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9))
    alone = subject.batch(subject.prompt(0, 5))
    del alone["attention_mask"]
    handles = [
        subject.lm.layers[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in (2, 3)
    ]
    found = calibrate(subject.model, [batch, alone], tau=1.2)
    for handle in handles:
        handle.remove()
    start = batch["attention_mask"].argmax(1).tolist()
    assert start[0] > start[1] == 0
    states = [each[row, start[row]] for each in seen[:2] for row in (0, 1)]
    states += [each[0, 0] for each in seen[2:]]
    assert len(states) == 6
    assert found == tuple(sink_dimensions(torch.stack(states), 1.2).tolist()) != ()
    padded = torch.stack([each[row, 0] for each in seen[:2] for row in (0, 1)])
    assert found != tuple(sink_dimensions(padded, 1.2).tolist())


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(VLMCompressError, match="at least one prompt"):
        calibrate(SUBJECTS["random llava"]().model, [])
