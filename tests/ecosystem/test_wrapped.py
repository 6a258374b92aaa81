"""Models inside pipelines, adapters, wrappers for several devices, and pairs."""

import types

import pytest
import torch
import transformers

import vlmcompress
from vlmcompress.errors import UnsupportedModelError


def adapted(model, prompt_learning=False):
    """A module that is built and called as `peft.PeftModel`, which is not installed here."""

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)

    kind = type(
        "PeftModel",
        (torch.nn.Module,),
        {
            "__module__": "peft.peft_model",
            "forward": forward,
            "generate": lambda self, **options: self.base_model.model.generate(**options),
            "get_base_model": lambda self: self.base_model.model,
            "config": property(lambda self: self.base_model.model.config),
        },
    )
    found = kind()
    found.base_model = torch.nn.Module()
    found.base_model.model = model
    found.active_peft_config = types.SimpleNamespace(
        is_prompt_learning=prompt_learning, peft_type="PREFIX_TUNING"
    )
    return found


@pytest.mark.parametrize("wrap", ["pipeline", "peft"])
def test_what_calls_the_very_model_is_unwrapped(case, wrap):
    bare, short = case.wanted("divprune")
    if wrap == "pipeline":
        given = transformers.pipeline(
            "image-text-to-text", model=case.model, processor=case.processor
        )
        runs = case.model
    else:
        given = runs = adapted(case.model)
    with case.compress("divprune", given) as handle:
        assert handle.model is case.model
        assert torch.equal(case.ids(runs), short)
    assert torch.equal(case.ids(runs), bare)


def test_a_real_adapter(case):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    given = peft.get_peft_model(case.model, config)
    bare = case.ids(given)
    with case.compress("divprune", given) as handle:
        assert not torch.equal(case.ids(given), bare)
        assert handle.report().engaged
    assert torch.equal(case.ids(given), bare)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.nn.DataParallel, r"runs copies of the model.*compress its \.module"),
        (lambda model: (model, "processor"), r"compress\(model, \.\.\., processor=processor\)"),
        (lambda model: adapted(model, prompt_learning=True), "puts tokens of its own before"),
    ],
)
def test_what_cannot_be_unwrapped_names_what_to_pass(case, wrap, words):
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        vlmcompress.compress(wrap(case.model), "divprune", 36)
    assert "\n" not in str(caught.value)
