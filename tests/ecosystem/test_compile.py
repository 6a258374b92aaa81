"""torch.compile: after wrapping it works, before wrapping it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vlmcompress
from vlmcompress.errors import UnsupportedModelError

METHOD = "divprune+fastv(k=1)"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _layers(model: Any, **options: Any) -> None:
    for layer in model.model.language_model.layers:
        layer.compile(**options)


def _decoder(model: Any, **options: Any) -> None:
    model.model.language_model.compile(**options)


def _replaced_decoder(model: Any, **options: Any) -> None:
    model.model.language_model = torch.compile(model.model.language_model, **options)


def _model(model: Any, **options: Any) -> None:
    model.compile(**options)


def _forward(model: Any, **options: Any) -> None:
    model.forward = torch.compile(model.forward, **options)


_WAYS = {
    "every decoder layer": _layers,
    "the decoder in place": _decoder,
    "the decoder as a new module": _replaced_decoder,
    "the forward of the model": _forward,
    "the model in place": _model,
}


def _answer(small: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two new tokens and their logits: a prefill and a step that continues it."""
    asked = {"return_dict_in_generate": True, "output_logits": True}
    out = small.ids(max_new_tokens=2, min_new_tokens=2, **asked)
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize(
    "way",
    [
        "every decoder layer",
        "the decoder as a new module",
        "the forward of the model",
        "the model in place",
    ],
)
def test_compiling_a_wrapped_model_changes_no_answer_and_removal_still_works(small, way):
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    bare_ids, bare = _answer(small)
    with vlmcompress.compress(small.model, METHOD, budget=6) as c:
        wanted_ids, wanted = _answer(small)
        assert not torch.allclose(wanted, bare, atol=1e-2)
        _WAYS[way](small.model, backend=backend)
        ids, logits = _answer(small)
        assert torch.equal(ids, wanted_ids)
        assert torch.allclose(logits, wanted, atol=1e-5)
        assert c.report().engaged
    assert graphs
    ids, logits = _answer(small)
    assert torch.equal(ids, bare_ids)
    assert torch.allclose(logits, bare, atol=1e-5)


def test_a_compiled_layer_of_a_wrapped_model_still_cuts(small):
    """The quickest of the ways above: one layer, one forward."""
    graphs = []
    bare = small.logits()
    with vlmcompress.compress(small.model, METHOD, budget=6) as c:
        wanted = small.logits()
        assert not torch.allclose(wanted, bare, atol=1e-2)
        last = small.model.model.language_model.layers[-1]
        last.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
        assert torch.allclose(small.logits(), wanted, atol=1e-5)
        assert c.report().engaged
    assert graphs


@pytest.mark.parametrize("way", ["torch.compile(model)", "model.compile()"])
def test_a_whole_model_that_is_compiled_after_wrapping_is_compressed(small, way):
    """Compiled code does not see where a call begins; only what is outside its base is compiled."""
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.no_grad()
    def logits(model: Any) -> torch.Tensor:
        return model(**small.inputs).logits[:, -1]

    bare = small.logits()
    with vlmcompress.compress(small.model, METHOD, budget=6) as c:
        wanted = small.logits()
        assert not torch.allclose(wanted, bare, atol=1e-2)
        base, model = small.model.model, small.model
        base.forward = torch.compiler.disable(base.forward)
        if way == "model.compile()":
            model.compile(backend=backend)
        else:
            model = torch.compile(model, backend=backend)
        before = c.report().milliseconds
        assert torch.allclose(logits(model), wanted, atol=1e-5)
        assert c.report().milliseconds != before
        assert c.report().engaged
    assert graphs
    assert torch.allclose(logits(model), bare, atol=1e-5)


@pytest.mark.parametrize("way", list(_WAYS))
def test_a_model_is_refused_after_compiling(small, way):
    _WAYS[way](small.model, backend="eager")
    with pytest.raises(UnsupportedModelError, match="compress the plain model first") as raised:
        vlmcompress.compress(small.model, METHOD, budget=6)
    assert "\n" not in str(raised.value)


def test_a_model_inside_a_compiled_one_is_refused_under_that_name(small):
    compiled = torch.compile(small.model, backend="eager")
    with pytest.raises(UnsupportedModelError, match="OptimizedModule is compiled"):
        vlmcompress.compress(compiled, METHOD, budget=6)
    with vlmcompress.compress(small.model, METHOD, budget=6) as c:  # what it was made of is plain
        small.logits()
        assert c.report().engaged
