"""Tokens of several patches merged between the layers of a tower, against a tower by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from bare import last_logits
from bare_tower import feature_depth, running_towers
from cut_pixels import encode, every_feature, pictures
from merged_tower import MergedTower, packed_tiles, picture_groups, shrinking, square_tiles
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.methods.tome import ToMe
from vlmcompress.patches.families.tower_layers import attention_layers

PACKED = [
    f"random {family}{clips}"
    for family in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
    for clips in ("", " with clips")
] + ["tiny-qwen", "tiny-qwen with clips"]
TILES = {
    "random internvl": (2, 1),
    "random idefics3": (2, 0),
    "random smolvlm": (2, 0),
    "random gemma3": (2, 0),
}
"""Patches along a side of a token, and tokens of a tile that are no patches."""
DEFAULT = ["random qwen2.5-vl", "random qwen3-vl with clips", "random internvl", "random smolvlm"]
_built: dict[str, Any] = {}


def subject_of(name: str) -> Any:
    if name not in _built:
        _built[name] = SUBJECTS[name]()
    _built[name].model.set_attn_implementation("sdpa")
    return _built[name]


def once(name: str, *rest: Any) -> Any:
    """A few families in the default tier."""
    return pytest.param(name, *rest, marks=() if name in DEFAULT else pytest.mark.slow)


PACKED_ONCE = [once(name) for name in PACKED]
TILES_ONCE = [once(name, *facts) for name, facts in TILES.items()]


@dataclass(frozen=True)
class Once(ToMe):
    """Merges behind one layer."""

    name: ClassVar[str] = "once"
    layer: int = 0

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        return {self.layer: keep}


METHODS = ["tome", "tome(proportional=False)", "pitome", "mctf(floor=1)"]


def depth_of(subject: Any) -> int:
    (tower,) = running_towers(subject)
    return feature_depth(subject, len(attention_layers(tower)))


def methods_for(subject: Any, spec: str) -> list[Any]:
    """A registered method; or of "once" one for each layer."""
    if spec != "once":
        return [method_of(spec)]
    return [Once(layer=layer) for layer in range(depth_of(subject))]


def method_of(spec: str) -> Any:
    from vlmcompress.methods.composition.spec import parse

    return parse(spec).upstream


@pytest.mark.pairs
@pytest.mark.parametrize("share", [0.8, 0.6])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", ["once", *METHODS])
@pytest.mark.parametrize("name", PACKED_ONCE)
def test_merging_equals_a_tower_by_hand(name, spec, attention, share, monkeypatch):
    """Two pictures or clips of other sizes, windows that lose tokens, every layer of the tower."""
    subject = subject_of(name)
    sizes = [(6, 6), (5, 8)]
    _, inputs = pictures(subject, sizes)
    (tower,) = running_towers(subject)
    depth, untouched = depth_of(subject), every_feature(encode(subject, inputs))
    for method in methods_for(subject, spec):

        def counts(tokens: int, method: Any = method) -> dict[int, int]:
            keep = round(share * tokens * subject.frames) // subject.frames
            return shrinking(method.schedule(depth, tokens, keep), tokens)

        hand = MergedTower(subject, tower, depth, method, packed_tiles(subject, inputs, counts))
        expected = every_feature(hand.run(lambda: encode(subject, inputs), monkeypatch))
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, method, budget=f"{share:.0%}"):
            found = every_feature(encode(subject, inputs))
        subject.model.set_attn_implementation("sdpa")
        for mine, other in zip(found, expected, strict=True):
            assert max((a - b).abs().max() for a, b in zip(mine, other, strict=True)) < 1e-4
        moved = max((a - b).abs().max() for a, b in zip(found[0], untouched[0], strict=True))
        assert moved > 1e-2


@pytest.mark.pairs
@pytest.mark.parametrize("share", ["80%", "60%"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", ["once", *METHODS])
@pytest.mark.parametrize(("name", "block", "cls"), TILES_ONCE)
def test_merging_in_tiles_equals_a_tower_by_hand(
    name, block, cls, spec, attention, share, monkeypatch
):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    vision = subject.model.config.vision_config
    size, patch = (
        n[0] if isinstance(n, list | tuple) else n for n in (vision.image_size, vision.patch_size)
    )
    side = size // patch
    (tower,) = running_towers(subject)
    tiles = len(next(v for n, v in inputs.items() if n.startswith("pixel")).flatten(0, -4))
    depth = depth_of(subject)
    with torch.no_grad():
        untouched = subject.features(inputs)
    for method in methods_for(subject, spec):

        def counts(tokens: int, method: Any = method) -> dict[int, int]:
            keep = round(float(share[:-1]) / 100 * tokens)
            return shrinking(method.schedule(depth, tokens, keep), tokens)

        own = square_tiles(tiles, side, block, cls, counts)
        hand = MergedTower(subject, tower, depth, method, own)
        expected = hand.run(lambda: subject.features(inputs), monkeypatch)
        subject.model.set_attn_implementation(attention)
        with compress(subject.model, method, budget=share) as c:
            last_logits(subject, inputs)
            images = c.report().images
            with torch.no_grad():
                found = subject.features(inputs)
        subject.model.set_attn_implementation("sdpa")
        assert (found - expected).abs().max() < 1e-4
        assert (found - untouched).abs().max() > 1e-2
        each = len(own) // len(images)
        for number, image in enumerate(images):
            mine = own[number * each : (number + 1) * each]
            assert image.groups == picture_groups(mine)
