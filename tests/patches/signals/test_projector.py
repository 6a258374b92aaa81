"""The projector as a function: what it makes of its inputs is what the decoder sees."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from looker import looker
from subject_models import CLIP, IMAGE, LLAMA, build, internvl, llava_next

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.families.registry import family_of

TOLERANCE = 1e-4


@pytest.fixture
def subject(subject: Any) -> Any:
    """Each family whose projector can be probed."""
    if "projection" not in family_of(subject.model).encoder.gives(subject.model.model):
        pytest.skip("its projector cannot be probed")
    return subject


def projector(model: Any) -> Any:
    return model.model.get_submodule(family_of(model).encoder.projector)


def last_bias(model: Any) -> torch.Tensor:
    return [value for name, value in projector(model).named_parameters() if "bias" in name][-1]


def numbers(projected: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [N], one of which no two rows share."""
    weights = torch.randn(projected.shape[-1], generator=torch.Generator().manual_seed(0))
    return projected @ weights


@torch.no_grad()
def test_body_and_last_layer_make_the_features_of_each_part(subject):
    batch = subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))
    method, shown = looker("projection")
    with compress(subject.model, method, budget="50%"):
        subject.model(**batch)
    assert len(shown) >= 3
    for tokens in shown:
        projection = tokens.projection
        made = projection.body(projection.inputs) @ projection.last.T + last_bias(subject.model)
        mine = projection.to_tokens(numbers(made))
        assert mine.shape == (len(tokens.grid),)
        assert (mine - numbers(tokens.features)).abs().max() < TOLERANCE * mine.abs().max()
        assert mine.std() > 0.01


@torch.no_grad()
def test_a_part_is_probed_with_its_own_patches_only():
    subject = internvl()
    method, shown = looker("projection")
    with compress(subject.model, method, budget="50%"):
        subject.model(**subject.batch(subject.prompt(1, 1)))
    assert [tokens.projection.inputs.shape for tokens in shown] == [(9, 4, 32)] * 3


@torch.no_grad()
def test_inputs_are_not_copied(random_subject):
    entered: list[torch.Tensor] = []
    method, shown = looker("projection")
    handle = projector(random_subject.model).register_forward_pre_hook(
        lambda module, args: entered.append(args[0])
    )
    with compress(random_subject.model, method, budget="50%"):
        random_subject.model(**random_subject.batch(random_subject.prompt(2, 1)))
    handle.remove()
    for number, tokens in enumerate(shown):
        assert tokens.projection.inputs.shape == (36, 1, 32)
        assert tokens.projection.inputs.data_ptr() == entered[0][number].data_ptr()


@torch.no_grad()
def test_the_body_computes_in_the_dtype_that_it_is_given(subject):
    half = replace(subject, model=copy.deepcopy(subject.model).bfloat16())
    batch = subject.batch(subject.prompt(1, 1))
    method, shown = looker("projection")
    with compress(half.model, method, budget="50%"):
        half.model(**batch)
    projection = shown[0].projection
    assert projection.inputs.dtype == projection.last.dtype == torch.bfloat16
    rough, fine = (
        projection.body(projection.inputs.to(t)) for t in (torch.bfloat16, torch.float32)
    )
    assert (rough.dtype, fine.dtype) == (torch.bfloat16, torch.float32)
    error = (rough - fine).abs().max()
    assert 0 < error < 0.1 * fine.abs().max()


@torch.inference_mode()
def test_parts_are_told_apart_under_inference_mode():
    subject = llava_next()
    method, shown = looker("projection")
    with compress(subject.model, method, budget="50%"):
        subject.model(**subject.batch(subject.prompt(1, 1)))
    assert [len(tokens.projection.inputs) for tokens in shown] == [16, 24]


def test_a_projector_of_another_form_gives_none():
    model = build("Llava", vision_config=CLIP, text_config=LLAMA, image_token_index=IMAGE)
    model.model.multi_modal_projector.linear_2 = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(UnsupportedModelError, match="needs projection, which this llava model"):
        compress(model, looker("projection")[0], budget=4)
