"""Visual tokens that the caller's attention mask closes: never picked, never counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kv_cache import cache_in, cached
from mechanisms import MECHANISMS
from oracle import BOTH, DECODER, TOLERANCE, budget, oracle

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedCallError

pytestmark = pytest.mark.pairs(subject=MECHANISMS)

METHODS = ["divprune", "random", "tome(stage='projector')", "text-only", *DECODER, *BOTH]
CLOSED = ["one image", "the last image", "all images", "parts of images"]


def closing(subject: Any, rows: list[int], which: str) -> dict[str, torch.Tensor]:
    """Prompts of so many images each; of every one the mask closes some visual tokens.

    Positions are those of the open prompt: made from such a mask, Qwen's do not exist.
    """
    inputs = subject.batch(*(subject.prompt(n, 20 + n, text=6 + n) for n in rows))
    inputs["position_ids"] = subject.positions(inputs)
    for row, ids in enumerate(inputs["input_ids"]):
        for number, columns in enumerate(images := subject.columns(ids)):
            at = {
                "one image": columns if number == 0 else [],
                "the last image": columns if number == len(images) - 1 else [],
                "all images": columns,
                "parts of images": columns[number::3],
            }[which]
            inputs["attention_mask"][row, at] = 0
    return inputs


def unmasked(subject: Any, inputs: dict[str, torch.Tensor], images: Any) -> list[list[int]]:
    """Per image the raster indices that the mask leaves open."""
    seen: dict[int, int] = {}
    found = []
    for image in images:
        number = seen[image.row] = seen.get(image.row, -1) + 1
        columns = subject.visual(subject.columns(inputs["input_ids"][image.row])[number])
        found.append(inputs["attention_mask"][image.row, columns].nonzero()[:, 0].tolist())
    return found


def pools_parts(method: str, which: str) -> bool:
    return "pool" in method and which == "parts of images"


@torch.no_grad()
def logits(subject: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return subject.model(**inputs).logits[:, -1]


@pytest.mark.parametrize("rows", [[2], [2, 1, 0]])
@pytest.mark.parametrize("which", CLOSED)
@pytest.mark.parametrize("method", METHODS)
def test_law_2_dropping_equals_masking(subject, method, which, rows):
    inputs = closing(subject, rows, which)
    with compress(subject.model, method, budget=budget(method)) as c:
        if pools_parts(method, which):
            with pytest.raises(UnsupportedCallError, match="closes a part of image 0 of prompt 0"):
                logits(subject, inputs)
            return
        short = logits(subject, inputs)
    report = c.report()
    for image, opened in zip(report.images, unmasked(subject, inputs, report.images), strict=True):
        assert set(image.kept) <= set(opened)
        assert all(set(cut) <= set(image.kept) for cut in image.cuts.values())
        assert {i for group in image.groups or [] for i in group} <= set(opened)
        assert (image.before - image.masked, image.given) == (len(opened), len(opened))
        assert (image.mean > 0) == (bool(opened) and method != "text-only")
        assert image.mean <= max(1, 0.55 * len(opened) + 1)
    assert report.engaged == any(image.mean < image.given for image in report.images)
    assert (short - oracle(report, subject, inputs)).abs().max() < TOLERANCE


@pytest.mark.rotating(axis="method", by="subject", count=1, subject=MECHANISMS)
@pytest.mark.parametrize("which", CLOSED)
@pytest.mark.parametrize("method", METHODS)
def test_law_1_and_3_keeping_all_changes_nothing_and_the_cache_equals_recomputing(
    subject, method, which
):
    inputs = closing(subject, [2, 1], which)
    del inputs["position_ids"]  # `generate` makes them
    try:
        bare = subject.generate(inputs)
    except (ValueError, RuntimeError, IndexError, StopIteration):
        pytest.skip("the bare model has no positions for such a mask")
    if method != "text-only":
        with compress(subject.model, method, budget="100%"):
            assert torch.equal(subject.generate(inputs), bare)
    if pools_parts(method, which):
        return
    with compress(subject.model, method, budget=budget(method)):
        short = subject.generate(inputs)
        assert torch.equal(short, subject.generate(inputs, use_cache=False))


@pytest.mark.parametrize("method", ["divprune", "fastv", "divprune+fastv"])
def test_a_second_turn_goes_on_without_the_closed_image(llava, method):
    inputs = closing(llava, [2, 1], "one image")
    del inputs["position_ids"]
    following = torch.tensor([[5, 6, 7], [8, 9, 10]])

    def turns(images: Any) -> torch.Tensor:
        out = llava.generate(images, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, following], 1)
        mask = torch.ones_like(ids)
        mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
        again = {"input_ids": ids, "attention_mask": mask}
        more: torch.Tensor = llava.generate(again | cached(llava.model, cache_in(out)))
        return more

    with compress(llava.model, method, budget=budget(method)):
        more = turns(inputs)
        # The closed image is of no account: with other pixels all is the same.
        others = inputs["pixel_values"].clone()
        others[[0, 2]] += 1
        assert torch.equal(turns(inputs | {"pixel_values": others}), more)
