"""What people do around `generate`: pipelines, streams, options, dtypes, interruptions."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from vlmcompress.errors import UnsupportedCallError


def new_text(case: Any, ids: torch.Tensor) -> str:
    new = ids[0, case.inputs["input_ids"].shape[1] :]
    return case.processor.decode(new, skip_special_tokens=True)


def test_a_pipeline_answers_as_generate_of_the_wrapped_model(case):
    bare, short = case.wanted()
    ask = transformers.pipeline("image-text-to-text", model=case.model, processor=case.processor)

    def answer() -> str:
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        return ask(text=case.chat, generate_kwargs=options)[0]["generated_text"][-1]["content"]

    with case.compress() as c:
        assert answer().strip() == new_text(case, short).strip()
        assert c.report().engaged
    assert answer().strip() == new_text(case, bare).strip()
    assert new_text(case, bare).strip() != new_text(case, short).strip()


def test_a_pipeline_that_is_built_from_a_wrapped_model_is_compressed(case):
    with case.compress() as c:
        ask = transformers.pipeline(
            "image-text-to-text", model=case.model, processor=case.processor
        )
        assert ask.model is case.model
        ask(text=case.chat, generate_kwargs={"max_new_tokens": 2})
        assert c.report().engaged


def test_an_iterator_streams_the_answer_from_another_thread(case):
    bare, short = case.wanted()
    with case.compress() as c:
        streamer = TextIteratorStreamer(case.processor.tokenizer, skip_prompt=True, timeout=60)
        worker = threading.Thread(target=case.ids, kwargs={"streamer": streamer})
        worker.start()
        pieces = list(streamer)
        worker.join()
        report = c.report()
    assert len(pieces) > 1
    assert "".join(pieces).strip() == new_text(case, short).strip() != new_text(case, bare).strip()
    assert report.engaged
    assert report.decode_tokens == 5


def test_a_text_streamer_prints_the_answer(case, capsys):
    short = case.wanted()[1]
    with case.compress():
        case.ids(streamer=TextStreamer(case.processor.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == new_text(case, short).strip()


class _Never(StoppingCriteria):
    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.bool)


_PLAIN = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
_OPTIONS = {
    "a generation config": {"generation_config": GenerationConfig(**_PLAIN)},
    "stopping criteria": {"stopping_criteria": StoppingCriteriaList([_Never()])},
    "a logits processor": {
        "logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(2, 1)])
    },
    "a dynamic cache by name": {"cache_implementation": "dynamic"},
    "a compile config, which only fixed caches use": {
        "compile_config": transformers.CompileConfig(backend="eager")
    },
}


@pytest.mark.parametrize("options", list(_OPTIONS))
def test_generate_takes(case, options):
    short = case.wanted()[1]
    with case.compress() as c:
        assert torch.equal(case.ids(**_OPTIONS[options]), short)
        assert c.report().engaged


def test_scores_and_hidden_states_come_per_new_token_and_are_those_of_the_short_prompt(case):
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    bare, short = case.wanted()
    full = case.ids(**asked)
    with case.compress() as c:
        out = case.ids(**asked)
        first = case.logits()
    assert torch.equal(out.sequences, short)
    assert torch.equal(full.sequences, bare)
    assert len(out.scores) == 6
    assert torch.equal(out.scores[0].isneginf(), full.scores[0].isneginf())
    finite = ~out.scores[0].isneginf()
    assert torch.allclose(out.scores[0][finite], first[finite], atol=1e-5)
    assert not torch.allclose(out.scores[0][finite], full.scores[0][finite], atol=1e-2)
    image = c.report().images[0]
    text = case.inputs["input_ids"].shape[1] - image.before
    lengths = [state.shape[1] for state in out.hidden_states[0]]
    assert lengths[1:] == [text + count for count in image.per_layer]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("stopped by the test")


_STOPS = {"an exception": (_fail, RuntimeError), "ctrl-c": (_interrupt, KeyboardInterrupt)}


@pytest.mark.parametrize("stop", list(_STOPS))
@pytest.mark.parametrize("call", ["ids", "logits"])
def test_the_model_is_as_good_as_new_after(case, stop, call):
    bare, short = case.wanted()
    hook, error = _STOPS[stop]
    decoder = case.model.model.language_model
    words = torch.randn(1, 8, decoder.config.hidden_size)
    alone = decoder(inputs_embeds=words).last_hidden_state
    with case.compress() as c:
        inside = decoder.layers[-1].register_forward_hook(hook)
        with pytest.raises(error):
            getattr(case, call)()
        inside.remove()
        if (call, stop) != ("logits", "ctrl-c"):  # PyTorch runs no hooks then; the next call tidies
            assert torch.equal(decoder(inputs_embeds=words).last_hidden_state, alone)
        assert torch.equal(case.ids(), short)
        assert c.report().engaged
    assert torch.equal(case.ids(), bare)


def test_an_exception_between_two_tokens_leaves_the_model_clean(case):
    bare, short = case.wanted()
    with case.compress():
        with pytest.raises(KeyboardInterrupt):
            case.ids(stopping_criteria=StoppingCriteriaList([_interrupt]))
        assert torch.equal(case.ids(), short)
    assert torch.equal(case.ids(), bare)


def test_training_mode_is_refused_until_the_model_is_back_in_evaluation_mode(case):
    short = case.wanted()[1]
    with case.compress():
        assert case.model.train() is case.model
        for call in (case.ids, case.logits):
            with pytest.raises(UnsupportedCallError, match=r"call model\.eval\(\) first"):
                call()
        case.model.eval()
        assert torch.equal(case.ids(), short)
    case.model.train()  # a bare model may train again
    case.logits()


_CONVERSIONS = {
    "to(bfloat16)": (lambda model: model.to(torch.bfloat16), torch.bfloat16),
    "half()": (lambda model: model.half(), torch.float16),
    "to(device, dtype)": (lambda model: model.to("cpu", torch.bfloat16), torch.bfloat16),
}


@pytest.mark.parametrize("name", list(_CONVERSIONS))
def test_converting_a_wrapped_model_equals_wrapping_a_converted_one_with(case, name):
    convert, dtype = _CONVERSIONS[name]
    case.inputs["pixel_values"] = case.inputs["pixel_values"].to(dtype)
    other = convert(copy.deepcopy(case.model))
    with case.compress(model=other):
        wanted, logits = case.ids(other), case.logits(other)
    with case.compress() as c:
        convert(case.model)
        assert torch.equal(case.ids(), wanted)
        assert torch.equal(case.logits(), logits)
        assert c.report().engaged
    assert logits.dtype == dtype
    assert not torch.equal(case.logits(), logits)


def test_inference_mode_changes_nothing(case):
    short = case.wanted()[1]
    with case.compress() as c:
        with torch.inference_mode():
            assert torch.equal(case.ids(), short)
        assert c.report().engaged
        assert torch.equal(case.ids(), short)
