"""What decoder methods are shown, against eager attention and hooks on the bare model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from bare import last_logits
from oracle import oracle, second_turn
from subject_models import CLIP, IMAGE, QWEN2, SUBJECTS, build
from subjects import Subject
from torch import Tensor

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.methods.contracts.decoder import DecoderMethod

SHOWN = ["random llava", "random qwen2.5-vl", "random qwen3-vl", "random gemma3", "windows"]
TEMPERATURES = (1.0, 0.3)
_built: dict[str, Any] = {}


class WindowSubject(Subject):
    """Some layers see a window, and no image attends to itself."""

    def allowed(self, inputs: dict[str, Tensor], layer: int) -> Tensor:
        place = torch.arange(inputs["input_ids"].shape[1])
        near = place[:, None] - place < (self.window or 0)
        seen = super().allowed(inputs, layer)
        return seen & near if self.slides(layer) else seen


def windows() -> Subject:
    kinds = ["full_attention", "sliding_attention", "full_attention"] * 2
    window = {"use_sliding_window": True, "sliding_window": 20, "layer_types": kinds}
    model = build("Llava", vision_config=CLIP, text_config=QWEN2 | window, image_token_index=IMAGE)
    return WindowSubject(model, IMAGE, 36, (3, 24, 24), window=20)


@pytest.fixture(params=SHOWN)
def shown(request: pytest.FixtureRequest) -> Any:
    """One model of each kind of decoder: plain, three axes, key norms, images that attend to
    themselves, windows."""
    if request.param not in _built:
        _built[request.param] = (SUBJECTS | {"windows": windows})[request.param]()
    return _built[request.param]


@dataclass(frozen=True)
class Looking(DecoderMethod):
    """Cuts before layers 2 and 4 to some of the tokens and remembers what it was shown."""

    name: ClassVar[str] = "looking"
    summary: ClassVar[str] = "looks"
    watches: ClassVar[bool] = True

    found: list[dict[str, Any]] = field(default_factory=list, hash=False, compare=False)

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        return {2: tokens - 2, 4: tokens // 2}

    def score(self, view: Any) -> Tensor:
        n, g = len(view.hidden), torch.Generator().manual_seed(7)
        row, stages = view.span.row, view.context.stages
        columns = stages.chunk_seen().columns[row]
        # Of each column its own, however the slots are shifted.
        mass = torch.rand(1000, generator=g)[columns]
        self.found.append(
            {
                "layer": view.layer,
                "stages": stages,
                "depth": view.depth,
                "row": row,
                "columns": columns,
                "valid": stages.chunk_seen().valid,
                "mass": mass,
                "hidden": view.hidden,
                "activations": view.activations(torch.arange(n)),
                "keys": {of: view.keys(rope=False, of=of) for of in ("this", "previous")},
                "passed": {
                    (of, t): view.propagate(mass, temperature=t, of=of)
                    for of in ("this", "previous")
                    for t in TEMPERATURES
                },
                "alike": view.propagate(torch.ones(1)),
                "heads": view.propagate(torch.stack([mass, 2 * mass, 0 * mass, mass])),
            }
        )
        return torch.arange(len(view.visual), 0, -1).float()


def real(found: dict[str, Any]) -> Tensor:
    """The slots that are no padding."""
    valid, row = found["valid"], found["row"]
    return torch.arange(len(found["mass"])) if valid is None else valid[row].nonzero()[:, 0]


def graph(attention: Tensor, found: dict[str, Any], temperature: float) -> Tensor:
    """[H, n, L] attention of the chunk's rows, sharpened as the softmax of a temperature is."""
    columns = found["columns"][real(found)]
    rows = attention[found["row"]][:, columns]
    # A layer before an earlier cut saw tokens that are gone, which take no part any more.
    gone = torch.arange(rows.shape[-1]) >= columns.min()
    rows = rows.masked_fill(gone.index_fill(0, columns, False), 0)
    sharp: Tensor = (rows.clamp_min(1e-38).log() / temperature).softmax(-1)
    return sharp.masked_fill(rows == 0, 0)


def ranked_in(subject: Any, layer: int) -> int:
    """The nearest layer, this or one before it, that sees all tokens, if there is one."""
    return max((n for n in range(layer + 1) if not subject.slides(n)), default=layer)


def check_passed(subject: Any, report: Any, whole: Any, found: Any, images: Any) -> None:
    """Mass that moved once over the graph lies where eager attention puts it."""
    slots = real(found)
    for of, temperature in found["passed"]:
        layer = ranked_in(subject, found["layer"] - (of == "previous"))
        attention = oracle(report, subject, whole, layer, images)
        expected = found["mass"][slots] @ graph(attention, found, temperature)
        passed = found["passed"][of, temperature]
        assert passed.shape == (4, len(found["mass"]))
        assert (passed[:, slots] - expected[:, found["columns"][slots]]).abs().max() < 1e-4
        padding = [slot for slot in range(len(found["mass"])) if slot not in slots]
        assert not passed[:, padding].any()


def side(keys: Tensor) -> Tensor:
    """[B, L, Hkv * hd]: the heads side by side, in whichever order a family has them."""
    heads_first = keys.dim() == 4 and keys.shape[1] == 2
    return (keys.transpose(1, 2) if heads_first else keys).reshape(len(keys), -1, 16)


def bare_states(subject: Any, inputs: Any) -> dict[str, Tensor]:
    """What the whole model computes around decoder layer 2, the first cut."""
    states: dict[str, Tensor] = {}
    handles = [
        subject.lm.layers[2].register_forward_pre_hook(
            lambda _, args: states.update(hidden=args[0])
        ),
        subject.lm.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda _, args: states.update(activations=args[0])
        ),
    ]
    for layer, of in ((1, "previous"), (2, "this")):
        attention = subject.lm.layers[ranked_in(subject, layer)].self_attn
        last = getattr(attention, "k_norm", attention.k_proj)
        handles.append(
            last.register_forward_hook(lambda *call, of=of: states.update({of: side(call[-1])}))
        )
    last_logits(subject, inputs)
    for handle in handles:
        handle.remove()
    return states


def test_the_view_shows_what_the_bare_model_computes(shown):
    inputs = shown.batch(shown.prompt(1, 3, text=4), shown.prompt(2, 4, text=9))
    bare, method = bare_states(shown, inputs), Looking()
    with compress(shown.model, method) as c:
        last_logits(shown, inputs)
    report = c.report()
    first = [found for found in method.found if found["layer"] == 2]
    assert len(first) == 3
    for found in first:
        row, slots = found["row"], real(found)
        assert found["depth"] == shown.layers
        columns = found["columns"][slots]
        for name in ("hidden", "activations"):
            assert (found[name][slots] - bare[name][row, columns]).abs().max() < 1e-4
        for of, keys in found["keys"].items():
            flat = keys.transpose(0, 1).flatten(1)
            assert flat.dtype == torch.float32
            assert (flat[slots] - bare[of][row, columns]).abs().max() < 1e-4
    for found in method.found:
        check_passed(shown, report, inputs, found, report.images)
        # What only a cut needs is let go of.
        assert found["stages"].fired is None
    assert {found["layer"] for found in method.found} == {2, 4}


def test_propagate_takes_mass_for_all_or_for_each_head(shown):
    inputs = shown.batch(shown.prompt(1, 3))
    with compress(shown.model, method := Looking()):
        last_logits(shown, inputs)
    for found in method.found:
        passed = found["passed"]["this", 1.0]
        factors = torch.tensor([1.0, 2.0, 0.0, 1.0])[:, None]
        torch.testing.assert_close(found["heads"], factors * passed)
        alike = found["alike"].sum(-1)
        torch.testing.assert_close(alike, torch.full_like(alike, len(found["mass"])))


@pytest.mark.parametrize("name", SHOWN[:2])
def test_earlier_turns_take_part_in_the_softmax(name):
    subject = SUBJECTS[name]()
    report, whole, _ = second_turn(subject, method := Looking(), 1)  # type: ignore[arg-type]
    newest = [[image for image in report.images if image.row == row][-1] for row in (0, 1)]
    second = [found for found in method.found if found["columns"].min() > 8]
    assert len(second) == 2 * len(newest)
    for found in second:
        check_passed(subject, report, whole, found, newest)
        assert (found["passed"]["this", 1.0].sum(-1) < 0.9 * found["mass"].sum()).all()


def test_answers_so_far_hand_nothing_on():
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 3))
    with compress(subject.model, method := Looking()):
        subject.generate(inputs, max_new_tokens=3, use_cache=False)
    steps = [found["passed"]["this", 1.0] for found in method.found if found["layer"] == 2]
    assert len(steps) == 3
    prompt = inputs["input_ids"].shape[1]
    for passed in steps:
        torch.testing.assert_close(passed[:, :prompt], steps[0])
        assert not passed[:, prompt:].any()


def neurons(model: Any) -> int:
    return sum(len(layer.mlp.down_proj._forward_pre_hooks) for layer in model.layers)


def test_neurons_are_hooked_only_for_methods_that_watch_them():
    subject = SUBJECTS["random llava"]()
    with compress(subject.model, "fastv"):
        assert neurons(subject.lm) == 0
    with compress(subject.model, Looking()):
        assert neurons(subject.lm) == subject.layers
    assert neurons(subject.lm) == 0


def test_a_mixture_of_experts_has_no_neurons_to_watch():
    subject = SUBJECTS["random qwen3-vl-moe"]()
    with pytest.raises(
        UnsupportedModelError, match=r"looking needs .* layer 0 .* mixture of experts"
    ):
        compress(subject.model, Looking())
    with compress(subject.model, "fastv"):
        pass


def test_no_layer_is_asked_for_its_attention(shown, monkeypatch):
    """The decoder keeps its attention implementation; nothing of it returns weights."""
    inputs = shown.batch(shown.prompt(1, 3))
    configs = [module.config for module in shown.model.modules() if hasattr(module, "config")]
    before = [config._attn_implementation for config in configs]
    assert set(before) == {"sdpa"}

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("eager attention ran")

    def plain(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        assert not kwargs.get("output_attentions")

    monkeypatch.setattr(
        sys.modules[type(shown.lm.layers[0].self_attn).__module__], "eager_attention_forward", never
    )
    with compress(shown.model, Looking()):
        handles = [
            module.register_forward_pre_hook(plain, with_kwargs=True)
            for module in shown.model.modules()
        ]
        last_logits(shown, inputs)
        assert [config._attn_implementation for config in configs] == before
    for handle in handles:
        handle.remove()
