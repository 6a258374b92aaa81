"""What holds for all methods that compare the frames of a clip."""

from __future__ import annotations

import math

import pytest
import torch
from plain import clip

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.evs import EVS
from vlmcompress.methods.fastvid import FastVID
from vlmcompress.methods.stride import Stride
from vlmcompress.methods.vidcom2 import VidCom2
from vlmcompress.tokens import Grid


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("act", [EVS().select, VidCom2().select, FastVID().reduce])
def test_features_that_are_not_finite_are_one_clear_error(act, count, bad):
    shown = clip(Grid(3, 2, 2))
    shown.features[5, 2] = bad
    with pytest.raises(VLMCompressError, match="features must be finite: 1 of 12"):
        act(shown, count)


@pytest.mark.parametrize("method", [EVS(), VidCom2()])
def test_selectors_look_at_the_features(method):
    first, second = (method.select(clip(Grid(4, 4, 4), seed), 24) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, Stride().select(clip(Grid(4, 4, 4)), 24))
