"""The stages "pixels" and "encoder", for every type whose processor cuts pixels as Qwen's do."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from cut_pixels import all_but, check_kept, cut, encode, every_feature, given, masked, pictures
from merged_tower import MergedTower, packed_tiles, shrinking
from model_case import case_of
from scope import CLIPS_HERE, DOZEN, PIXELS
from torch.nn.functional import interpolate
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from upstream_methods import Bright, Given, Shrink, picks

from vlmcompress.api import compress
from vlmcompress.methods.composition.spec import parse
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers

PROCESSED_AS = {"glm4v_moe": "glm4v", "glm_ocr": "glm46v"}
"""Types that have no image processor in transformers' list -> the type whose they take."""
SIZES = [(4, 4), (3, 5)]
"""Tokens of two pictures."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, modality), marks=() if name in DOZEN else pytest.mark.slow)
        for name in PIXELS
        for modality in (["image", "video"] if name in CLIPS_HERE else ["image"])
    ],
    ids="-".join,
)
def subject(request: Any) -> Any:
    name, modality = request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case_of(name).model
    frames = 2 if modality == "video" else 1
    return SimpleNamespace(model=model, modality=modality, frames=frames, name=name)


def test_its_processor_cuts_pixels_up_like_that(subject):
    config = subject.model.config.vision_config
    pixels = torch.randn(3, 2 * 2 * config.patch_size, 3 * 2 * config.patch_size)
    processor = processor_of(subject.name)()
    sizes = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    made = processor.patchify(pixels.numpy(), *sizes)[0]
    mine = cut(pixels.expand(config.temporal_patch_size, -1, -1, -1), config)
    assert torch.equal(torch.as_tensor(made), mine)


def processor_of(model_type: str) -> Any:
    listed = PROCESSED_AS.get(model_type, model_type.removesuffix("_thinker"))
    return getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[listed]["pil"])


def test_a_smaller_picture_is_what_the_processor_makes_of_one(subject):
    frames, inputs = pictures(subject, SIZES)
    config = subject.model.config.vision_config
    side, small = config.patch_size * config.spatial_merge_size, [(2, 4), (2, 4)]
    shrunk = [
        interpolate(f, (h * side, w * side), mode="bilinear", antialias=True)
        for f, (h, w) in zip(frames, small, strict=True)
    ]
    expected = every_feature(encode(subject, given(subject, shrunk)))
    with compress(subject.model, Shrink(to=(2, 4))):
        found = every_feature(encode(subject, inputs))
    assert len(found) == len(expected)
    for mine, bare in zip(found, expected, strict=True):
        for one, other, (h, w) in zip(mine, bare, SIZES, strict=True):
            cells = [
                (t * 2 + r * 2 // h) * 4 + c * 4 // w
                for t in range(subject.frames)
                for r in range(h)
                for c in range(w)
            ]
            assert (one - other[cells]).abs().max() < 1e-4


def test_leaving_out_pixels_equals_masking_them(subject, monkeypatch):
    _, inputs = pictures(subject, SIZES)
    rows = next(v for n, v in inputs.items() if n.startswith("pixel"))
    totals = [subject.frames * h * w for h, w in SIZES]
    blocks = rows.view(sum(totals), -1).sum(1).split(totals)
    kept = [b.argsort(descending=True)[: round(len(b) / 2)] for b in blocks]
    dropped = all_but(kept, totals)
    expected = every_feature(masked(subject, inputs, dropped, monkeypatch))
    bare = every_feature(encode(subject, inputs))
    with compress(subject.model, Bright(), budget="50%"):
        found = every_feature(encode(subject, inputs))
    check_kept(found, expected, kept)
    assert (found[0][0][kept[0]] - bare[0][0][kept[0]]).abs().max() > 1e-3


def test_dropping_between_layers_equals_masking_from_there(subject, monkeypatch):
    """For every layer; and keeping all changes not one bit."""
    _, inputs = pictures(subject, SIZES)
    totals = [subject.frames * h * w for h, w in SIZES]
    subject.model.set_attn_implementation("sdpa")  # in which `masked` leaves it
    bare = every_feature(encode(subject, inputs))
    depth = len(attention_layers(ModelParts.of(subject.model).towers[0]))
    for layer in range(depth):
        kept = [picks(layer, 1, total, -(-total // 2))[0] for total in totals]
        dropped = all_but(kept, totals)
        expected = every_feature(masked(subject, inputs, dropped, monkeypatch, layer))
        with compress(subject.model, Given(layer=layer, seed=layer), budget="100%"):
            whole = every_feature(encode(subject, inputs))
        with compress(subject.model, Given(layer=layer, seed=layer), budget="50%"):
            found = every_feature(encode(subject, inputs))
        for mine, other, all_of_it, untouched in zip(found, expected, whole, bare, strict=True):
            for number, places in enumerate(kept):
                assert (mine[number][places] - other[number][places]).abs().max() < 1e-4
                assert torch.equal(all_of_it[number], untouched[number])
        assert (found[0][0][kept[0]] - bare[0][0][kept[0]]).abs().max() > 1e-3


@pytest.mark.parametrize("spec", ["tome", "pitome", "mctf(floor=1)"])
def test_merging_between_layers_equals_a_tower_by_hand(subject, spec, monkeypatch):
    """And keeping all changes not one bit."""
    _, inputs = pictures(subject, SIZES)
    subject.model.set_attn_implementation("sdpa")  # in which `MergedTower` leaves it
    bare = every_feature(encode(subject, inputs))
    (tower,) = ModelParts.of(subject.model).towers
    method: Any = parse(spec).upstream
    depth = len(attention_layers(tower))

    def counts(tokens: int) -> dict[int, int]:
        keep = round(0.7 * tokens * subject.frames) // subject.frames
        return shrinking(method.schedule(depth, tokens, keep), tokens)

    hand = MergedTower(subject, tower, depth, method, packed_tiles(subject, inputs, counts))
    expected = every_feature(hand.run(lambda: encode(subject, inputs), monkeypatch))
    with compress(subject.model, method, budget="100%"):
        whole = every_feature(encode(subject, inputs))
    with compress(subject.model, method, budget="70%"):
        found = every_feature(encode(subject, inputs))
    for mine, other, all_of_it, untouched in zip(found, expected, whole, bare, strict=True):
        for number in range(len(SIZES)):
            assert (mine[number] - other[number]).abs().max() < 1e-4
            assert torch.equal(all_of_it[number], untouched[number])
    assert max((a - b).abs().max() for a, b in zip(found[0], bare[0], strict=True)) > 1e-3
