"""What decoder-stage methods are shown equals the attention of the bare model's own layers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from model_case import Case
from references import masked, staged
from scope import CUTS
from shortening import TOLERANCE, EverySecond, maskable

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError, VLMCompressError
from vlmcompress.laws.references import before_layers
from vlmcompress.methods import get_method
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.pyramiddrop import PyramidDrop
from vlmcompress.methods.registry import METHODS
from vlmcompress.patches.hooks.arguments import cache_name
from vlmcompress.patches.sequence.attention_masks import has_keys

CLOSE = 1e-5
NEED_MORE = {"var", "todre-exit"}
"""Methods that are told about a model, or that keep no fixed number."""
DECODER_METHODS = sorted(
    name
    for name, cls in METHODS.items()
    if issubclass(cls, DecoderMethod) and name not in NEED_MORE
)
REASONS = ("cut before one of", "mixture of experts or none", "any more: use a method")
"""Why others may not work with a type."""
Shown = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Watching(EverySecond):
    """Remembers what `look` sees before the first cut."""

    look: Callable[[LayerView], Shown] = lambda view: {}
    shown: list[Shown] = field(default_factory=list)

    def score(self, view: LayerView) -> torch.Tensor:
        self.shown.append(self.look(view))
        return super().score(view)


@dataclass(frozen=True)
class Twice(PyramidDrop):
    """Cuts twice, and remembers what the last token attended to before each cut."""

    shown: list[torch.Tensor] = field(default_factory=list)

    def score(self, view: LayerView) -> torch.Tensor:
        self.shown.append(view.attention(rows="last", of="previous"))
        return torch.arange(len(view.visual)).float()


def attention_of(layer: Any) -> Any:
    """The module of a layer that gives attention weights beside its output."""
    names = ("self_attn", "attn", "attention", "mixer")
    return next(found for name in names if (found := getattr(layer, name, None)) is not None)


def ranking_layer(case: Case, at: int) -> int:
    """The nearest layer, `at` or before, that sees all of the prompt; else that has attention."""
    near = range(at, -1, -1)
    whole = (n for n in near if has_keys(case.kinds[n]) and not _sees_a_part(case.kinds[n]))
    return next(whole, next((n for n in near if has_keys(case.kinds[n])), at))


def _sees_a_part(kind: str) -> bool:
    return "sliding" in kind or "chunked" in kind


def bare_weights(case: Case, number: int) -> torch.Tensor:
    """[H, L, L]: eager attention of a layer on the whole prompt."""
    seen: list[torch.Tensor] = []
    attention = attention_of(case.parts.layers[number])
    handle = attention.register_forward_hook(lambda *call: seen.append(call[-1][1]))
    try:
        case.logits(case.single)
    finally:
        handle.remove()
    assert seen[0].dim() == 4
    return seen[0][0]


def unturned(args: Any, kwargs: dict[str, Any]) -> Any:
    """A layer turns no queries and keys by their positions, and sees everything."""
    rotary, mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        kwargs = {**kwargs, "attention_mask": torch.zeros_like(mask)}
    if isinstance(rotary, torch.Tensor):
        rotary = torch.ones_like(rotary)
    elif rotary is not None:
        rotary = torch.ones_like(rotary[0]), torch.zeros_like(rotary[1])
    return args, {**kwargs, "position_embeddings": rotary} if rotary is not None else kwargs


def shown(case: Case, look: Callable[[LayerView], Shown]) -> Shown:
    """What `look` sees before the first cut."""
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    method = Watching(k=case.first_cut, ratio=0.5, look=look)
    with compress(case.model, method):
        case.logits(case.single)
    return method.shown[-1]


def test_rows_are_those_of_the_layer_that_ran_and_of_the_layer_about_to_run(case):
    def look(view: LayerView) -> Shown:
        return {of: view.attention(rows="text", of=of) for of in ("previous", "this")}

    rows = shown(case, look)
    for of, at in (("previous", case.first_cut - 1), ("this", case.first_cut)):
        weights = bare_weights(case, ranking_layer(case, at))
        assert (rows[of] - weights[:, -rows[of].shape[1] :]).abs().max() < CLOSE


@pytest.mark.rotating(axis="temperature", by="case", count=1)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mass_spreads_over_the_attention_of_the_layer_about_to_run(case, temperature):
    length = case.single["input_ids"].shape[1]
    mass = torch.linspace(0.1, 1, length)
    spread = shown(case, lambda view: {"": view.propagate(mass, temperature=temperature)})[""]
    weights = bare_weights(case, ranking_layer(case, case.first_cut)) ** (1 / temperature)
    if temperature != 1:
        weights = weights / weights.sum(-1, keepdim=True)
    assert (spread - torch.einsum("n,hnm->hm", mass, weights)).abs().max() < 10 * CLOSE


def test_without_positions_they_are_those_of_a_layer_that_turns_nothing(case):
    def look(view: LayerView) -> Shown:
        rows = view.attention(rows="last", keys="visual", rope=False, of="previous")
        return {"rows": rows, "visual": view.visual}

    number = ranking_layer(case, case.first_cut - 1)
    seen = shown(case, look)

    def only_there(at: int, args: Any, kwargs: dict[str, Any]) -> Any:
        return unturned(args, kwargs) if at == number else (args, kwargs)

    with before_layers(case.parts.layers, only_there):
        weights = bare_weights(case, number)[:, -1:, seen["visual"]]
    expected = weights / weights.sum(-1, keepdim=True)
    assert (seen["rows"] - expected).abs().max() < CLOSE


def test_under_autocast_what_was_captured_is_weighed_in_float32(case):
    if case.parts.family.no_scores is None:
        pytest.skip("its attention is computed from its input")
    mass = torch.linspace(0.1, 1, case.single["input_ids"].shape[1])

    def both(view: LayerView) -> Shown:
        rows = view.attention(rows="text", of="previous")
        return {"rows": rows, "spread": view.propagate(mass, of="previous")}

    def look(view: LayerView) -> Shown:
        found = both(view)
        with torch.autocast("cpu", enabled=False):
            return found | {f"{name} alone": value for name, value in both(view).items()}

    with torch.autocast("cpu", torch.bfloat16):
        seen = shown(case, look)
    for name in ("rows", "spread"):
        assert seen[name].dtype == torch.float32
        assert torch.equal(seen[name], seen[f"{name} alone"])


@pytest.mark.rotating(axis="name", by="case", count=2)
@pytest.mark.parametrize("name", DECODER_METHODS)
def test_every_decoder_method_works_or_says_why(case, name):
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    options, refused = {"k": case.first_cut} if name == "fastv" else {}, ""
    try:
        method = get_method(name, **options)
        with compress(case.model, method, budget="80%" if name != "fastv" else None) as c:
            short = case.logits(case.single)[:, -1]
    except VLMCompressError as error:
        refused = str(error)
    if refused:
        assert name != "fastv"
        assert any(reason in refused for reason in REASONS), refused
        return
    assert c.report().engaged
    reference = masked if maskable(case) else staged
    assert (short - reference(case, c.report(), case.single)).abs().max() < TOLERANCE


def test_the_report_says_where_a_layer_without_attention_was_passed_over(case):
    if case.model_type not in CUTS or has_keys(case.kinds[case.first_cut]):
        pytest.skip("the layer about to run has attention")
    with compress(case.model, PyramidDrop(layers=(case.first_cut,))) as c:
        case.logits(case.single)
    (image,) = c.report().images
    at = ranking_layer(case, case.first_cut)
    assert f"ranked in layer {at}, the nearest with attention" in " ".join(image.notes)


def test_a_second_cut_that_ranks_in_the_same_layer_sees_the_tokens_that_are_left(case):
    first, number = case.first_cut, ranking_layer(case, case.first_cut - 1)
    if (
        case.model_type not in CUTS
        or ranking_layer(case, first) != number
        or first + 1 >= case.depth
    ):
        pytest.skip("each cut ranks in a layer of its own")
    method = Twice(layers=(first, first + 1))
    with compress(case.model, method) as c:
        case.logits(case.single)
    visual = (case.single["input_ids"][0] == case.token).nonzero()[:, 0]
    left = torch.ones(case.single["input_ids"].shape[1], dtype=torch.bool)
    left[visual] = False
    left[visual[c.report().images[0].cuts[first]]] = True
    weights = bare_weights(case, number)[:, -1:, left]
    expected = weights / weights.sum(-1, keepdim=True)
    assert (method.shown[1] - expected).abs().max() < CLOSE


def test_a_new_picture_on_an_earlier_turn_is_ranked_by_the_attention_to_both(case):
    """What is shown of the new turn, against what the same forward attended with."""
    if case.model_type not in CUTS or case.first_cut - 1 != ranking_layer(case, case.first_cut - 1):
        pytest.skip("no cut, or ranked elsewhere")
    if case.model_type == "qwen4_exp":
        pytest.xfail("its n-gram embeddings raise IndexError on a second picture behind a cut")
    first, second = case.alone
    name = cache_name(case.parts.lm.forward)
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)

    def turns() -> None:
        cache = case.model(**first, use_cache=True)[name]
        seen.clear()
        case.model(**{**second, "attention_mask": mask, name: cache}, use_cache=True)

    method, seen = Watching(k=case.first_cut, ratio=0.5, look=_last_row), []
    attention = attention_of(case.parts.layers[case.first_cut - 1])
    handle = attention.register_forward_hook(lambda *call: seen.append(call[-1][1]))
    try:
        with torch.no_grad():
            try:
                turns()
            except Exception as error:  # whatever a model raises that takes no second picture
                pytest.skip(f"the bare model does not: {type(error).__name__}")
            with compress(case.model, method):
                try:
                    turns()
                except UnsupportedCallError as error:
                    pytest.skip(str(error))
    finally:
        handle.remove()
    rows, (weights,) = method.shown[-1]["last"], seen
    assert weights.shape[-1] > rows.shape[-1]
    assert (rows - weights[0, :, -1:, -rows.shape[-1] :]).abs().max() < CLOSE
    if not _sees_a_part(case.kinds[case.first_cut - 1]):
        assert rows.sum(-1).max() < 0.999  # the first turn has its share


@pytest.mark.parametrize("method", ["fastv(k=1)", "pyramiddrop", "feather"])
def test_attention_that_cannot_be_read_is_said_in_one_line(method, monkeypatch):
    case = Case("kimi_k25")
    attention = attention_of(case.parts.layers[0])
    code = sys.modules[type(attention).__module__]
    eager = code.eager_attention_forward

    def other(module, query, *args, **kwargs):
        if query.shape[2] < 5:  # not the layer's own call
            raise TypeError("unexpected\nargument")
        return eager(module, query, *args, **kwargs)

    monkeypatch.setattr(code, "eager_attention_forward", other)
    said = r"^the attention of decoder layer \d \(\w+\) cannot be read \(TypeError: unexpected arg"
    with (
        compress(case.model, method),
        pytest.raises(UnsupportedModelError, match=said) as error,
    ):
        case.logits(case.single)
    assert "\n" not in str(error.value)
    assert torch.equal(case.logits(case.single), case.bare)


def _last_row(view: LayerView) -> Shown:
    return {"last": view.attention(rows="last", of="previous")}


def test_a_cut_before_any_attention_names_the_layers_that_may_cut(case):
    attend = [n for n, kind in enumerate(case.kinds) if has_keys(kind)]
    if not attend[0]:
        pytest.skip("its first layer has attention")
    with (
        compress(case.model, f"fastv(k={attend[0]})"),
        pytest.raises(UnsupportedCallError, match=f"layers {attend[0] + 1} to {case.depth - 1}$"),
    ):
        case.logits(case.single)
    assert torch.equal(case.logits(case.single), case.bare)
