"""Every method on every family: the counts, the indices, and what must not happen."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from bare import bare, last_logits
from oracle import TOLERANCE
from shown import told
from subject_models import SUBJECTS
from tiers import rotation

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import DecoderMethod, Selector, get_method
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.contracts.decoder import LateEntry
from vlmcompress.methods.contracts.method import resolve
from vlmcompress.methods.registry import METHODS
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.signals.availability import given_by

BUDGETS = ("50%", "80%", None)
"""The first that a method can meet; None for its own setting."""

NAMES = [name for name in METHODS.names() if name != "full"]
FAMILIES = 3
"""That a method meets in the default tier."""


SMALL = {"mctf": {"floor": 1}}
"""Options without which a method keeps all of so small pictures."""


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each registered method."""
    name: str = request.param
    return get_method(name, **told(name, tmp_path_factory), **SMALL.get(name, {}))


def impossible(subject: Any, method: Any) -> str | None:
    """Words of the error if the model does not let the method in, None where it works."""
    family = family_of(subject.model)
    try:
        pipeline = Pipeline.of([method])
        settled = pipeline.for_stages(family.name, family.stages).methods[0]
    except VLMCompressError:
        return f"{method.name} acts at the {method.acts_at} stage"
    if method.acts_at == "encoder" and subject.modality == "video" and not one_to_one(subject):
        return "take images only"
    if getattr(settled, "watches", False) and not hasattr(subject.lm.layers[0].mlp, "down_proj"):
        return "has a mixture of experts"
    if isinstance(settled, LateEntry) and family.deepstack:
        return "DeepStack"
    _, missing = resolve(settled.asks, given_by(family, subject.model.model))
    return f"{method.name} needs " if missing else None


def one_to_one(subject: Any) -> bool:
    """Whether every patch of a frame becomes a token, none of them pooled."""
    return subject.tokens_per_image == subject.frames * 36


def shortened(subject: Any, method: Any, inputs: Any) -> tuple[str | None, Any, torch.Tensor]:
    """A run with the first of `BUDGETS` that can be met: that, the handle, last-token logits."""
    for budget in BUDGETS if method.takes_budget else [None]:
        try:
            handle = compress(subject.model, method, budget=budget)
        except BudgetError:
            continue
        try:
            return budget, handle, last_logits(subject, inputs)
        except BudgetError:
            handle.remove()
    raise AssertionError(f"{method.name} meets none of {BUDGETS}")


def check_image(image: Any, method: Any, budget: str | None) -> None:
    """Counts as asked for, indices ascending, unique, and inside the image."""
    kept, before = image.kept, image.before
    assert kept == sorted(set(kept))
    assert all(0 <= token < before for token in kept)
    assert image.after == len(kept)
    alive = set(kept)
    late = isinstance(method, LateEntry)
    if late:
        assert image.cuts == {0: [], image.enters: kept}
    for _, survivors in [] if late else sorted(image.cuts.items()):
        assert survivors == sorted(set(survivors))
        assert alive.issuperset(survivors)
        alive = set(survivors)
    if image.groups is not None:
        pairs = zip(kept, image.groups, strict=True)
        assert all(place in group for place, group in pairs)
        if not method.wraps:
            assert [min(group) for group in image.groups] == kept
        assert all(group == sorted(set(group)) for group in image.groups)
    if budget is None:
        return
    asked = round(float(budget.rstrip("%")) / 100 * before)
    if isinstance(method, Selector):
        assert image.after == asked
    elif late:
        assert asked - before / len(image.per_layer) < image.mean <= asked
    elif isinstance(method, DecoderMethod):
        assert image.after == before
        # An adaptive cut may only take more.
        assert image.mean <= asked + 1
        assert method.adaptive or image.mean >= asked - 1
    elif method.acts_at == "encoder" and len(image.parts) > 1:
        # A share of each tile, padding included; groups that lie in the padding are gone.
        assert 0 < image.after < before
    else:
        assert 0 < image.after <= asked


@pytest.mark.rotating(axis="subject", by="method", count=FAMILIES)
def test_every_method_on_every_family(subject, method):
    prompts = [subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9)]
    inputs = subject.batch(*prompts)
    words = impossible(subject, method)
    if words:
        with pytest.raises(VLMCompressError, match=words), compress(subject.model, method, "50%"):
            last_logits(subject, inputs)
        return
    whole, ids = bare(subject, inputs).logits, bare(subject, inputs).ids[:, :-4]
    untouched = snapshot(subject.model)
    if method.takes_budget:
        with compress(subject.model, method, budget="100%") as c:
            assert torch.equal(last_logits(subject, inputs), whole)
        assert method.adaptive or not c.report().engaged
    budget, handle, short = shortened(subject, method, inputs)
    with handle as c:
        images = c.report().images
        for row, prompt in enumerate(prompts):
            assert (last_logits(subject, subject.batch(prompt))[0] - short[row]).abs().max() < (
                TOLERANCE
            )
            mine = [(i.kept, i.cuts, i.groups) for i in images if i.row == row]
            assert mine == [(i.kept, i.cuts, i.groups) for i in c.report().images]
        subject.generate(inputs, max_new_tokens=2)
        assert [image.kept for image in c.report().images] == [image.kept for image in images]
    for image in images:
        check_image(image, method, budget)
    if any(image.mean < image.before for image in images):
        assert (short - whole).abs().max() > 100 * TOLERANCE
    else:
        assert method.adaptive
    assert torch.equal(subject.generate(inputs, max_new_tokens=2), ids)
    assert snapshot(subject.model) == untouched


@pytest.mark.slow
def test_the_default_tier_shows_every_method_at_work(tmp_path_factory):
    built = {name: make() for name, make in SUBJECTS.items()}
    rows = [{"subject": s, "method": m} for s, m in product(SUBJECTS, NAMES)]
    works = {
        rows[place]["method"]
        for place in rotation(rows, "subject", by="method", count=FAMILIES)
        if not impossible(
            built[rows[place]["subject"]],
            get_method(rows[place]["method"], **told(rows[place]["method"], tmp_path_factory)),
        )
    }
    assert works == set(NAMES)
