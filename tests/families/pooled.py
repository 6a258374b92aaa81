"""What mergers and poolers are compared with: the bare model, its projector giving what they make.

A method is called on features of the bare model as on any tensor. What it makes is what the model's
own feature call then returns for the tokens that are left, and the others are taken away as those
of a selector are (`references`). The engine takes no part in it but for its report, which says how
many tokens of each grid are left. A method between decoder layers is asked with the hidden states
of the bare model in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from feature_rows import changed
from model_case import TYPE_IDS, Case, Inputs
from references import ends_of, masked, shortened, spans, staged
from scope import TOLERANCES
from shortening import TOLERANCE, is_void, maskable
from torch import Tensor

from vlmcompress.api import compress
from vlmcompress.laws.references import before_layers
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.decoder import DecoderReducer
from vlmcompress.methods.contracts.method import Method, Reducer
from vlmcompress.tokens import Grid, Reduction, VisualTokens

REDUCERS = {
    "chunk": "50%",  # groups of any size
    "restore(divprune, sizes=False, distance=False)": "50%",  # groups that stand at their medians
    "pool(weights='similar')": "50%",  # windows of the grid, and no plain means
}
"""Methods that look at features only, each with a budget."""
CLIP_REDUCERS = {
    "aim-merge": "50%",  # pairs inside each frame, in rounds
    "chunk": "40%",  # runs that go on from one frame to the next
    "pool": "30%",  # windows of each frame
}
ANSWERS = {"paligemma": 1}
"""Token types of what was answered, which else are 0."""


def with_answer(case: Case, inputs: Inputs, answer: Tensor) -> Inputs:
    """Prompts [B, L] and what was answered [B, A], as one."""
    types = torch.full_like(answer, ANSWERS.get(case.model_type, 0))
    more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    more |= dict.fromkeys(TYPE_IDS, types)
    return {
        name: torch.cat([value, more[name]], 1) if name in more else value
        for name, value in inputs.items()
    }


class Pooled:
    """The pictures of some prompts as a method makes them, in the model without it."""

    def __init__(self, case: Case, spec: str, report: Any, inputs: Inputs) -> None:
        self.case, self.report, self.inputs = case, report, inputs
        self.made: list[Reduction] = []
        """Of each picture; since the last `logits`."""
        (self._method,) = parse(spec).methods
        self._spans = spans(case, report, inputs)
        self._visual = list(self._tokens())
        """Per picture [N] int64: its tokens among the placeholders of all pictures."""

    def logits(self, answer: Tensor) -> Tensor:
        """[B, V] behind the prompts and `answer` [B, A]."""
        self.made = []
        with self._between() if self.report.images[0].cuts else self._projected():
            return self.selected(answer)

    def selected(self, answer: Tensor) -> Tensor:
        """The same with the tokens that are left as they were."""
        reference = masked if maskable(self.case) else staged
        if is_void(self.case, "staged"):
            reference = shortened
        return reference(self.case, self.report, with_answer(self.case, self.inputs, answer))

    def _tokens(self) -> Iterator[Tensor]:
        start = 0
        for image, columns in zip(self.report.images, self._spans, strict=True):
            ends = {place for place, _, _ in ends_of(self.case, image, self.inputs, len(columns))}
            places = [place for place in range(len(columns)) if place not in ends]
            yield torch.tensor(places) + start
            start += len(columns)

    @property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of all placeholders."""
        pairs = zip(self.report.images, self._spans, strict=True)
        rows = [torch.full_like(columns, image.row) for image, columns in pairs]
        return torch.cat(rows), torch.cat(self._spans)

    def _projected(self) -> AbstractContextManager[None]:
        """While the projector gives what the method makes."""

        def write(rows: Tensor) -> None:
            for image, visual in zip(self.report.images, self._visual, strict=True):
                self._put(rows, visual, _merged(self._method, rows[visual], image))

        def average(rows: Tensor) -> None:
            before = rows.clone()
            for visual, made in zip(self._visual, self.made, strict=True):
                for place, group in zip(made.anchors.tolist(), made.groups(), strict=True):
                    rows[visual[place]] = before[visual[group]].mean(0)

        return changed(self.case, self._places, write, average)

    def _between(self) -> AbstractContextManager[None]:
        """While hidden states become what the method makes of them, before the layer of its cut."""
        (layer,) = self.report.images[0].cuts

        def write(number: int, args: Any, kwargs: dict[str, Any]) -> Any:
            if number != layer:
                return args, kwargs
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            rows = hidden[self._places].flatten(1)  # some have several streams
            for image, visual in zip(self.report.images, self._visual, strict=True):
                grids = [Grid(*shape) for shape in image.parts]
                assert isinstance(self._method, DecoderReducer)
                made = self._method.merge(rows[visual], grids, len(image.cuts[layer]))
                self._put(rows, visual, made)
            hidden[self._places] = rows.view(-1, *hidden.shape[2:])
            changed = {**kwargs} if args else {**kwargs, "hidden_states": hidden}
            return ((hidden, *args[1:]) if args else args), changed

        return before_layers(self.case.parts.layers, write)

    def _put(self, rows: Tensor, visual: Tensor, made: Reduction) -> None:
        """Write what was made of the picture whose tokens are `rows[visual]`."""
        self.made.append(made)
        rows[visual[made.anchors]] = made.features


def _merged(method: Method, rows: Tensor, image: Any) -> Reduction:
    """What a method makes of the features [N, D] of a picture, grid by grid."""
    assert isinstance(method, Reducer)
    made: list[Reduction] = []
    starts: list[int] = []
    start = 0
    for number, shape in enumerate(image.parts):
        grid = Grid(*shape)
        own = rows[start : start + len(grid)]
        count = sum(start <= place < start + len(grid) for place in image.kept)
        tokens = VisualTokens(own, grid, index=image.index, part=number)
        stay = count == len(grid)
        made.append(Reduction.identity(own) if stay else method.reduce(tokens, count))
        starts.append(start)
        start += len(grid)
    return Reduction.join(made, starts)


def check_merging(case: Case, spec: str, budget: str | None, inputs: Inputs) -> None:
    """A prompt, and a step that follows on its cache, against the model that is given the merged.

    Neither what the bare model says, nor what it says of the same tokens unmerged.
    """
    with compress(case.model, spec, budget) as c:
        done = case.generate(inputs, steps=2)
    answer = done.sequences[:, inputs["input_ids"].shape[1] : -1]
    short, pooled = done.logits[-1], Pooled(case, spec, c.report(), inputs)
    allowed = TOLERANCES.get(case.model_type, TOLERANCE)
    assert (short - pooled.logits(answer)).abs().max() < allowed
    for image, made in zip(c.report().images, pooled.made, strict=True):
        kept, groups = image.kept, image.groups
        for cut in image.cuts:
            kept, groups = image.cuts[cut], image.merges[cut]
        assert (kept, groups) == (made.anchors.tolist(), made.groups())
        assert any(len(group) > 1 for group in groups)
    assert (short - pooled.selected(answer)).abs().max() > 10 * allowed
    bare = case.logits(with_answer(case, inputs, answer))[:, -1]
    assert (short - bare).abs().max() > 10 * allowed
