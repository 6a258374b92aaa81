"""How many tokens of an image or clip are kept: known from its layout, before it is encoded."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError, CompositionError, UnsupportedModelError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import ProjectorMethod, Stage, resolve
from vlmcompress.serving.rows import emptied
from vlmcompress.serving.settings import Settings
from vlmcompress.tokens import Grid, Layout, Separator

_STAGES: tuple[Stage, ...] = ("projector",)


@lru_cache(maxsize=256)
def pipeline_of(method: str) -> Pipeline:
    """The pipeline that a method spec describes, as a serving engine can run it.

    Raises:
        VLMCompressError: it is no method, or acts elsewhere than between projector and decoder.
    """
    pipeline = parse(method)
    if pipeline.decoder is not None:
        raise CompositionError(
            f"{pipeline.name} cannot be served: {pipeline.decoder.name} acts between "
            "decoder layers, and vLLM has laid out the KV cache of all layers by then; methods "
            "between projector and decoder can be served (vlmcompress ls methods)"
        )
    if pipeline.attention_bias is not None:
        raise CompositionError(
            f"{pipeline.name} cannot be served: it adds a bias to the attention logits of the "
            "decoder, and the attention of vLLM takes none"
        )
    return pipeline.for_stages("vLLM", _STAGES)


def method_of(method: str) -> ProjectorMethod:
    """The one method of `pipeline_of`; see there for what it raises."""
    projector = pipeline_of(method).projector
    assert projector is not None
    return projector


def check_stage(method: str, family: str, stages: Collection[Stage]) -> None:
    """Refuse a method that would act elsewhere in process, so that its answers would differ.

    Args:
        method: its spec.
        family: name of the model's family.
        stages: where `vlmcompress.compress` lets methods in.

    Raises:
        CompositionError: it is such a method.
    """
    method_of(method)
    (own,) = parse(method).for_stages(family, stages).methods
    if own.acts_at != "projector":
        raise CompositionError(
            f"{own.name} acts at the {own.acts_at} stage of {family}, which vLLM does not allow; "
            f"\"{own.name}(stage='projector')\" is possible"
        )


def signals_of(method: str, given: Collection[str], model: str) -> frozenset[str]:
    """The signals to collect for a method.

    Args:
        method: its spec.
        given: the signals that the model gives.
        model: what people call it.

    Raises:
        UnsupportedModelError: the method needs another.
    """
    wanted, missing = resolve(pipeline_of(method).needs, given)
    if missing:
        raise UnsupportedModelError(
            f"{method} needs {', '.join(missing)}, which {model} does not give in vLLM (it gives "
            f"{', '.join(sorted(given)) or 'none'})"
        )
    return wanted


@dataclass(frozen=True)
class ItemPlan:
    """What is to be done with one image or clip: made in the front end, carried out in the model.

    Placeholders are counted in the prompt, so no other number of features may ever come back.
    """

    method: str
    layout: Layout
    parts: tuple[tuple[Grid, int], ...]
    """As in `ImagePlan`."""
    words: tuple[int, ...] = ()
    """Token ids of the question, where the method looks at it."""
    texts: tuple[int, ...] = ()
    """Token ids of the text between frames, which stands at the separators of the layout: how many
    tokens a frame keeps is known too late, so that its place is, too."""
    emptied: tuple[int, ...] = ()
    """Places of the separators that go with their rows."""

    @property
    def given(self) -> int:
        """Features that the model makes of it, separators among them."""
        return self.layout.placeholders

    @property
    def keep(self) -> int:
        """Features that are left, separators among them."""
        separators = len(self.layout.separators) - len(self.emptied)
        return sum(kept for _, kept in self.parts) + separators

    @property
    def encoded(self) -> Layout:
        """How the features lie that the model makes of pixels: without text."""
        return Layout(self.layout.parts) if self.texts else self.layout

    def ids(self, placeholder: int) -> list[int]:
        """What stands in the unpruned prompt, visual tokens as `placeholder`."""
        found = [placeholder] * self.given
        for separator, text in zip(self.layout.separators, self.texts, strict=False):
            found[separator.place] = text
        return found

    def dump(self) -> bytes:
        """As bytes, for a tensor beside the pixels."""
        separators = [(s.place, s.start, s.stop) for s in self.layout.separators]
        parts = [(_sides(grid), kept) for grid, kept in self.parts]
        grids = list(map(_sides, self.layout.parts))
        own = self.method, grids, separators, parts, self.words, self.texts, self.emptied
        return json.dumps(own).encode()

    @classmethod
    def load(cls, raw: bytes) -> ItemPlan:
        """What `dump` wrote."""
        method, grids, separators, parts, words, texts, emptied = json.loads(raw)
        layout = Layout(
            tuple(Grid(*sides) for sides in grids), tuple(Separator(*one) for one in separators)
        )
        counts = tuple((Grid(*sides), kept) for sides, kept in parts)
        return cls(method, layout, counts, tuple(words), tuple(texts), tuple(emptied))


def _sides(grid: Grid) -> tuple[int, int, int]:
    return grid.t, grid.h, grid.w


def with_texts(
    layout: Layout, full: Sequence[int], visual: Sequence[bool]
) -> tuple[Layout, tuple[int, ...]]:
    """Text between the visual tokens of a clip as separators that always stay.

    Args:
        layout: of the visual tokens by themselves.
        full: token ids of the clip in the prompt.
        visual: which of these are visual tokens.

    Returns:
        The layout of all, and the ids of the text.
    """
    places = [place for place, is_visual in enumerate(visual) if not is_visual]
    separators = tuple(Separator(place, 0, len(layout)) for place in places)
    return Layout(layout.parts, separators), tuple(full[place] for place in places)


def plan(
    settings: Settings,
    layout: Layout,
    words: tuple[int, ...] = (),
    texts: tuple[int, ...] = (),
) -> ItemPlan:
    """The plan of one image or clip; `words` and `texts` as in `ItemPlan`.

    Raises:
        VLMCompressError: the count depends on the content, is zero, or cannot be met.
    """
    found = planned(settings, layout)
    if not any(kept for _, kept in found.parts):
        raise BudgetError(f"{settings.method} keeps no token of an image: vLLM needs at least one")
    gone = _emptied(settings, layout)
    return ItemPlan(settings.method, layout, found.parts, words, texts, gone)


@lru_cache(maxsize=4096)
def planned(settings: Settings, layout: Layout | Grid) -> ImagePlan:
    """Counts for a layout; see `plan`."""
    pipeline = pipeline_of(settings.method)
    budget = None if settings.budget is None else Budget.parse(settings.budget)
    if budget is None and any(method.adaptive for method in pipeline.methods):
        raise BudgetError(
            f"{settings.method} decides by the content how many tokens stay, which vLLM must know "
            'beforehand: give a budget such as 64 or "25%"'
        )
    if budget is not None and budget.is_cost:
        raise BudgetError(
            f"budget {budget} cannot be served per request: give a count such as 64 or a share "
            'such as "25%"'
        )
    # The number of decoder layers matters to decoder-stage methods only.
    (found,) = Planner(pipeline, budget, layers=1).plan([layout])
    return found


@lru_cache(maxsize=4096)
def _emptied(settings: Settings, layout: Layout) -> tuple[int, ...]:
    return emptied(method_of(settings.method), planned(settings, layout), layout)
