"""Pixels made smaller or left out, against the processor's layout and a masked tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import last_logits
from cut_pixels import all_but, check_kept, cut, encode, every_feature, given, masked, pictures
from looker import looker
from subject_models import SUBJECTS
from torch.nn.functional import interpolate
from transformers import Qwen2VLImageProcessorPil
from upstream_methods import Bright, Shrink

from vlmcompress.api import compress
from vlmcompress.errors import CompositionError, UnsupportedCallError, VLMCompressError
from vlmcompress.methods.downsample import Downsample
from vlmcompress.methods.pixelprune import PixelPrune
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.tokens import Grid

NAMES = [
    f"random {family}{clips}"
    for family in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
    for clips in ("", " with clips")
] + ["tiny-qwen with clips"]
_built: dict[str, Any] = {}


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest) -> Any:
    if request.param not in _built:
        _built[request.param] = SUBJECTS[request.param]()
    _built[request.param].model.set_attn_implementation("sdpa")
    return _built[request.param]


def test_the_rows_of_a_picture_are_those_of_the_processor():
    subject = SUBJECTS["random qwen2-vl"]()
    config = subject.model.config.vision_config
    image = torch.randn(3, 24, 40)
    made = Qwen2VLImageProcessorPil().patchify(image.numpy(), 4, 2, config.temporal_patch_size)[0]
    mine = cut(image.expand(config.temporal_patch_size, -1, -1, -1), config)
    assert torch.equal(torch.as_tensor(made), mine)


def test_a_smaller_picture_is_what_the_processor_makes_of_one(subject):
    frames, inputs = pictures(subject, [(6, 6), (5, 8), (2, 3)])
    config = subject.model.config.vision_config
    side = config.patch_size * config.spatial_merge_size
    small = [
        interpolate(f, (h * side, w * side), mode="bilinear", antialias=True)
        for f, (h, w) in zip(frames, [(3, 4), (3, 4), (2, 3)], strict=True)
    ]
    expected = every_feature(encode(subject, given(subject, small)))
    with compress(subject.model, Shrink(to=(3, 4))):
        found = every_feature(encode(subject, inputs))
    for mine, bare in zip(found, expected, strict=True):
        for one, other, (h, w), (a, b) in zip(
            mine, bare, [(6, 6), (5, 8), (2, 3)], [(3, 4), (3, 4), (2, 3)], strict=True
        ):
            cells = [
                (t * a + r * a // h) * b + c * b // w
                for t in range(subject.frames)
                for r in range(h)
                for c in range(w)
            ]
            assert set(cells) == set(range(subject.frames * a * b))
            assert (one - other[cells]).abs().max() < 1e-4


def test_what_stands_for_a_smaller_picture(subject):
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, Shrink(to=(2, 3))) as c:
        last_logits(subject, inputs)
    (image,) = c.report().images
    places = [f * 36 + r * 6 + c for f in range(subject.frames) for r in (0, 3) for c in (0, 2, 4)]
    assert image.kept == places
    assert image.groups == [[p + 6 * r + c for r in range(3) for c in range(2)] for p in places]


def test_methods_behind_a_smaller_picture_see_it_as_a_picture(subject):
    inputs = subject.batch(subject.prompt(1, 1))
    look, shown = looker("keys", "encoder_attention")
    with compress(subject.model, [Shrink(to=(4, 3)), look], budget="20%"):
        last_logits(subject, inputs)
    (tokens,) = shown
    assert tokens.grid == Grid(subject.frames, 4, 3)
    count = len(tokens.grid)
    assert len(tokens.features) == len(tokens.keys) == count
    assert [len(v) for v in tokens.encoder_attention.values()] == [count]
    assert len(tokens.keys.unique(dim=0)) == count


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_leaving_out_pixels_equals_masking_them(subject, share, attention, monkeypatch):
    sizes = [(6, 6), (5, 8)]
    _, inputs = pictures(subject, sizes)
    config = subject.model.config.vision_config
    rows = next(v for n, v in inputs.items() if n.startswith("pixel"))
    totals = [subject.frames * h * w for h, w in sizes]
    # The blocks of least brightness, so that at 10 % whole windows are empty.
    blocks = rows.view(sum(totals), -1).sum(1).split(totals)
    kept = [b.argsort(descending=True)[: round(share * len(b))] for b in blocks]
    dropped = all_but(kept, totals)
    expected = every_feature(masked(subject, inputs, dropped, monkeypatch))
    bare = every_feature(encode(subject, inputs))
    subject.model.set_attn_implementation(attention)
    seen: list[int] = []
    last = attention_layers(subject.model.model.visual)[-1][0]
    hook = last.register_forward_hook(lambda *a: seen.append(len(a[2])))
    with compress(subject.model, Bright(), budget=f"{share:.0%}"):
        found = every_feature(encode(subject, inputs))
    hook.remove()
    assert seen == [sum(map(len, kept)) * config.spatial_merge_size**2]
    check_kept(found, expected, kept)
    assert (found[0][0][kept[0]] - bare[0][0][kept[0]]).abs().max() > 1e-2


def test_pixelprune_keeps_one_block_of_a_plain_picture(subject):
    frames, _ = pictures(subject, [(6, 6)])
    plain = torch.zeros_like(frames[0])
    config = subject.model.config.vision_config
    side = config.patch_size * config.spatial_merge_size
    plain[:, :, side : 3 * side, side : 3 * side] = 1.0
    ids, _ = subject.prompt(1, 1)
    inputs = subject.batch((ids, cut(plain, config)[None]))
    with compress(subject.model, PixelPrune()) as c:
        last_logits(subject, inputs)
        cached = subject.generate(inputs)
        assert torch.equal(cached, subject.generate(inputs, use_cache=False))
        single = c.report().images[0]
    assert single.kept == [0, 7, 9, 19]
    with compress(subject.model, PixelPrune(), budget=12) as c:
        last_logits(subject, inputs)
        assert c.report().images[0].after == 12
        assert set(c.report().images[0].kept) > {0, 7, 9, 19}


def test_downsample_is_settled_by_the_model(subject):
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, Downsample(), budget="25%") as c:
        last_logits(subject, inputs)
    (image,) = c.report().images
    assert image.after == subject.frames * 9
    assert [len(group) for group in image.groups] == [4] * image.after
    llava = SUBJECTS["random llava"]()
    inputs = llava.batch(llava.prompt(1, 1))
    logits = []
    for method in (Downsample(), "pool"):
        with compress(llava.model, method, budget="25%"):
            logits.append(last_logits(llava, inputs))
    assert torch.equal(*logits)
    with pytest.raises(CompositionError, match="acts at the pixels stage"):
        compress(llava.model, Downsample(stage="pixels"), budget="25%")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Bright(only=(1, 1)), "not ascending, unique"),
        (Bright(only=(3, 2)), "not ascending, unique"),
        (Bright(only=(0, 900)), "from 0 to"),
        (Bright(), "0 tokens where at most"),
        (Shrink(to=(0, 2)), "asked for a grid of"),
    ],
)
def test_a_wrong_choice_of_pixels_is_one_clear_error(method, words):
    subject = _built.setdefault(NAMES[0], SUBJECTS[NAMES[0]]())
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, method), pytest.raises(VLMCompressError, match=words):
        last_logits(subject, inputs)


def test_what_describes_the_larger_picture_is_refused():
    subject = _built.setdefault(NAMES[0], SUBJECTS[NAMES[0]]())
    _, inputs = pictures(subject, [(6, 6)])
    with (
        compress(subject.model, Shrink(to=(3, 3))),
        pytest.raises(UnsupportedCallError, match="image_cu_seqlens describe"),
    ):
        encode(subject, inputs | {"image_cu_seqlens": torch.tensor([0, 144])})


def test_a_count_above_a_picture_keeps_all_of_it():
    subject = _built.setdefault(NAMES[0], SUBJECTS[NAMES[0]]())
    _, inputs = pictures(subject, [(6, 6), (2, 2)])
    with compress(subject.model, Bright(), budget=9):
        features = encode(subject, inputs).pooler_output
        assert [int(f.any(1).sum()) for f in features] == [9, 4]
    with compress(subject.model, Bright(), budget=37):
        features = encode(subject, inputs).pooler_output
        assert [int(f.any(1).sum()) for f in features] == [36, 4]
