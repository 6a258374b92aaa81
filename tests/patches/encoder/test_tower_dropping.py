"""Tokens dropped between the layers of a vision tower, against a masked tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from bare import bare, last_logits
from cut_pixels import encode, every_feature, masked, pictures
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods.contracts.before_projector import TokenPatches, TowerDropper
from vlmcompress.patches.families.tower_layers import attention_layers

PACKED = [
    f"random {family}{clips}"
    for family in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
    for clips in ("", " with clips")
] + ["tiny-qwen", "tiny-qwen with clips"]
_built: dict[str, Any] = {}


@dataclass(frozen=True)
class Given(TowerDropper):
    """Keeps what a seed says of each size of grid, before a given layer."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "drops"
    layer: int = 0
    seed: int = 0

    def before(self, depth: int) -> int:
        return self.layer

    def select(self, tokens: TokenPatches, count: int) -> torch.Tensor:
        return picks(self.seed, len(tokens.hidden), len(tokens.grid), count)


def picks(seed: int, rows: int, total: int, count: int) -> torch.Tensor:
    """[rows, count] ascending: other ones for each row."""
    g = torch.Generator().manual_seed(seed + total)
    order = [torch.randperm(total, generator=g)[:count].sort().values for _ in range(rows)]
    return torch.stack(order)


def subject_of(name: str) -> Any:
    if name not in _built:
        _built[name] = SUBJECTS[name]()
    _built[name].model.set_attn_implementation("sdpa")
    return _built[name]


def depth_of(subject: Any) -> int:
    return len(attention_layers(subject.model.model.visual))


DEFAULT = ["random qwen2.5-vl", "random qwen3-vl with clips"]
PACKED_ONCE = [
    pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in PACKED
]


@pytest.mark.pairs
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED_ONCE)
def test_dropped_patches_are_no_keys_and_no_queries(name, attention, share, monkeypatch):
    """Every layer of every tower: the pictures have windows that lose all of their tokens."""
    subject = subject_of(name)
    sizes = [(6, 6), (5, 8)]
    _, inputs = pictures(subject, sizes)
    totals = [subject.frames * h * w for h, w in sizes]
    nothing = torch.zeros(sum(totals), dtype=torch.bool)
    untouched = every_feature(encode(subject, inputs))
    twin = every_feature(masked(subject, inputs, nothing, monkeypatch))
    assert max((a - b).abs().max() for a, b in zip(twin[0], untouched[0], strict=True)) < 1e-4
    counts = [round(share * total) for total in totals]
    for layer in range(depth_of(subject)):
        kept = [picks(layer, 1, *one)[0] for one in zip(totals, counts, strict=True)]
        dropped = torch.ones(sum(totals), dtype=torch.bool)
        dropped[kept[0]] = dropped[kept[1] + totals[0]] = False
        expected = every_feature(masked(subject, inputs, dropped, monkeypatch, layer))
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, Given(layer=layer, seed=layer), budget=f"{share:.0%}"):
            found = every_feature(encode(subject, inputs))
        subject.model.set_attn_implementation("sdpa")
        for stack, (mine, other) in enumerate(zip(found, expected, strict=True)):
            for number, places in enumerate(kept):
                assert (mine[number][places] - other[number][places]).abs().max() < 1e-4
                gone = torch.ones(totals[number], dtype=torch.bool)
                gone[places] = False
                early = stack and subject.model.config.vision_config.deepstack_visual_indexes
                if not (early and early[stack - 1] < layer):  # taps before it see everything
                    assert not mine[number][gone].any()
        moved = (found[0][0][kept[0]] - untouched[0][0][kept[0]]).abs().max()
        assert moved > 1e-3


def prompts(subject: Any) -> list[Any]:
    return [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]


@pytest.mark.parametrize("score", ["spread", "farthest"])
@pytest.mark.parametrize("name", PACKED_ONCE)
def test_keeping_all_changes_not_one_bit_and_removing_leaves_nothing(name, score):
    subject = subject_of(name)
    inputs = subject.batch(*prompts(subject))
    untouched, logits = snapshot(subject.model), bare(subject, inputs).logits
    for layer in range(depth_of(subject)):
        spec = f"unit-drop(layer={layer}, score={score!r})"
        with compress(subject.model, spec, budget="100%") as c:
            assert torch.equal(last_logits(subject, inputs), logits)
        assert not c.report().engaged
        with compress(subject.model, spec, budget="40%") as c:
            short = last_logits(subject, inputs)
        assert c.report().engaged
        assert ((short - logits).abs().amax(1) > 1e-3).all()
        assert snapshot(subject.model) == untouched
        assert torch.equal(last_logits(subject, inputs), logits)
