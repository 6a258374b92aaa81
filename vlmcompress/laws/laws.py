"""The laws. Each gives a figure, which is compared with what is allowed, or says why it is void."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from vlmcompress.laws.law import (
    BrokenError,
    Law,
    VoidError,
    difference,
    first_line,
    steps_apart,
)
from vlmcompress.laws.picture_tokens import PictureTokens, other_pixels
from vlmcompress.laws.places import in_corner
from vlmcompress.laws.references import Keep, NoMaskError, masked, staged
from vlmcompress.laws.settings import (
    EverySecond,
    Setting,
    decoder_setting,
    noticed_in,
    tolerance_of,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.laws.subject import Inputs, Subject
from vlmcompress.patches.engine import engine_of
from vlmcompress.report.report import Report
from vlmcompress.tokens import Layout

_IN_CORNER = 0.75
"""The share of the tokens that changed most which must lie where the picture was changed."""
Run = tuple[list[tuple[int, Layout]], Report, Tensor]


class Laws:
    """The laws of one subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._tolerance = tolerance_of(subject.model.dtype)
        self._noticed = noticed_in(subject.model.dtype)
        self._runs: dict[tuple[str, int], Run] = {}
        self._twins: dict[str, float] = {}
        self._cut, self._no_cut = decoder_setting(subject)

    def __iter__(self) -> Iterator[Law]:
        half, spread = Setting("divprune", "50%"), Setting(EverySecond(), "50%")
        quarter = Setting("divprune", "25%")
        yield Law("tokens of the picture are found", None, self._misplaced)
        yield Law("separators are known as such", None, self._unknown_separators)
        yield Law("tokens lie where they show", None, self._in_corner, _IN_CORNER, True)
        yield Law("keeping all changes not one bit", "random 100%", self._changed_by_keeping)
        for setting in (quarter, half, *self._cuts):
            yield self._law("dropping = taking rows out", setting, self._off_staged)
        if self._cut is None:
            yield Law("dropping = taking rows out", "decoder stage", self._no_decoder_stage)
        for setting in (half, *self._cuts):
            yield self._law("dropping = masking", setting, self._off_masked)
        for setting in (quarter, *self._cuts):
            noticed = partial(self._difference, setting)
            yield Law("dropping is noticed", setting.name, noticed, self._noticed, True)
        for setting in (half, *self._cuts):
            yield self._law("cached = uncached", setting, self._off_uncached)
        for setting in (spread, *self._cuts):
            yield self._law("batch = singles", setting, self._off_singles)
        for setting in (half, *self._cuts):
            yield Law("removing leaves nothing behind", setting.name, partial(self._left, setting))

    @property
    def _cuts(self) -> Sequence[Setting]:
        """For methods between decoder layers."""
        return [] if self._cut is None else [self._cut]

    def _no_decoder_stage(self) -> float:
        raise VoidError(self._no_cut)

    def _law(self, name: str, setting: Setting, figure: Callable[[Setting], float]) -> Law:
        return Law(name, setting.name, partial(figure, setting), self._tolerance)

    def _misplaced(self) -> float:
        """Placeholders that the adapter does not find, or finds where there is no picture."""
        if not bool(self._subject.tokens.depends.any()):
            raise BrokenError("other pixels change nothing that the decoder is given")
        for inputs, tokens in self._prompts():
            layouts, _, _ = self._run(Setting("random", "100%"), inputs)
            tokens.placed(layouts)
        return 0.0

    def _prompts(self) -> Iterator[tuple[Inputs, PictureTokens]]:
        subject = self._subject
        yield subject.single, subject.tokens
        if subject.both is not None:
            yield subject.both, subject.tokens_of_both

    def _unknown_separators(self) -> float:
        """Placeholders that are the same for any picture, and that the adapter calls visual."""
        wrong, lost = 0, 0
        for inputs, tokens in self._prompts():
            layouts, _, _ = self._run(Setting("random", "100%"), inputs)
            for (row, layout), mine in zip(layouts, tokens.placed(layouts), strict=True):
                constant = ~tokens.depends[row, mine]
                wrong += int((constant & layout.visual).sum())
                lost += sum(one.start >= one.stop for one in layout.separators)
        if wrong:
            raise BrokenError(
                f"{wrong} tokens are the same for any picture, but the adapter takes them for "
                "visual tokens, which methods drop"
            )
        return float(lost)

    def _in_corner(self) -> float:
        """Where the tokens lie that notice something in a corner."""
        subject = self._subject
        if subject.corner is None:
            raise VoidError("no other picture can be prepared")
        layouts, _, _ = self._run(Setting("random", "100%"), subject.single)
        share = in_corner(subject, layouts)
        if share is None:
            raise VoidError(
                "the tokens are several grids, or do not show where something is in a picture"
            )
        return share

    def _changed_by_keeping(self) -> float:
        """The largest difference to the bare model, which computes the same twice."""
        subject, setting = self._subject, Setting("random", "100%")
        pairs = [(subject.single, subject.bare)]
        if subject.both is not None:
            pairs.append((subject.both, subject.bare_both))
        for inputs, bare in pairs:
            if not torch.equal(subject.logits(inputs), bare):
                raise VoidError("the bare model computes something else each time")
        bare_steps = subject.generate(subject.single)
        with subject.compressed("random", "100%") as c:
            off = [
                difference(subject.logits(inputs), bare, relative=False) for inputs, bare in pairs
            ]
            steps = subject.generate(subject.single)
        if c.report().engaged:
            raise BrokenError(f"{setting.name} drops tokens")
        return max([*off, steps_apart(steps, bare_steps, relative=False)])

    def _off_staged(self, setting: Setting) -> float:
        subject = self._subject
        layouts, report, logits = self._run(setting, subject.single)
        keep = self._keep(subject.tokens.keep(layouts, report, self._depth))
        return difference(logits, self._staged(subject.single, keep))

    def _off_masked(self, setting: Setting) -> float:
        """In a batch, as only that is given masks by every attention implementation."""
        subject = self._subject
        if subject.both is None:
            raise VoidError(f"no batch: {subject.no_batch}")
        layouts, report, logits = self._run(setting, subject.both)
        keep = self._keep(subject.tokens_of_both.keep(layouts, report, self._depth))
        both = subject.both

        def run() -> Tensor:
            return subject.logits(both)[:, -1]

        try:
            reference = masked(subject.parts, run, keep)
        except NoMaskError as error:
            raise VoidError(str(error)) from error
        for row, inputs in enumerate(subject.alone):
            mine = [layer[row : row + 1, -inputs["input_ids"].shape[1] :] for layer in keep]
            taken_out = self._staged(inputs, mine)
            if not difference(reference[row : row + 1], taken_out) <= self._tolerance:
                raise VoidError(
                    "in the bare model a masked token is not one that is gone: layers carry a "
                    "state along, or batches differ from their members"
                )
        return difference(logits, reference)

    def _difference(self, setting: Setting) -> float:
        """What dropping changes, unless other pixels change hardly more."""
        subject = self._subject
        _, report, logits = self._run(setting, subject.single)
        if not report.engaged:
            raise BrokenError("no token was dropped")
        off = difference(logits, subject.bare[:, -1])
        if off < self._noticed:
            other = subject.logits({**subject.single, **other_pixels(subject.single)})
            by_pixels = difference(other[:, -1], subject.bare[:, -1])
            if by_pixels < 10 * self._noticed:
                raise VoidError(f"even another picture changes the logits by {by_pixels:.2g} only")
        return off

    def _off_uncached(self, setting: Setting) -> float:
        subject = self._subject

        def apart() -> float:
            cached = subject.generate(subject.single)
            return steps_apart(cached, subject.generate(subject.single, use_cache=False))

        self._twin(apart, "with and without a cache")
        with subject.compressed(setting.method, setting.budget):
            return apart()

    def _off_singles(self, setting: Setting) -> float:
        subject = self._subject
        if subject.both is None:
            raise VoidError(f"no batch: {subject.no_batch}")
        both = subject.both

        def apart() -> float:
            together = subject.generate(both)
            off = []
            for row, inputs in enumerate(subject.alone):
                mine = [(logits[[row]], ids[[row]]) for logits, ids in together]
                off.append(steps_apart(mine, subject.generate(inputs)))
            return max(off)

        self._twin(apart, "in a batch and alone")
        with subject.compressed(setting.method, setting.budget):
            return apart()

    def _twin(self, apart: Callable[[], float], how: str) -> None:
        """Ask the bare model first.

        Raises:
            VoidError: it does not keep the law itself.
        """
        if how not in self._twins:
            try:
                self._twins[how] = apart()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                text = f"the bare model does not run {how}: {first_line(error)}"
                raise VoidError(text) from error
        off = self._twins[how]
        if not off <= self._tolerance:
            raise VoidError(f"the bare model differs {how}, by {off:.2g}")

    def _left(self, setting: Setting) -> float:
        """Modules that are not as they were."""
        subject = self._subject
        subject.logits(subject.single)  # some keep a note of their last prompt
        before = snapshot(subject.model)
        with subject.compressed(setting.method, setting.budget):
            subject.logits(subject.single)
        subject.logits(subject.single)
        after = snapshot(subject.model)
        return float(sum(before.get(name) != after.get(name) for name in {**before, **after}))

    @property
    def _depth(self) -> int:
        return len(self._subject.parts.layers)

    def _run(self, setting: Setting, inputs: Inputs) -> Run:
        """Rows and layouts as the adapter sees them, what was done, and logits [B, V]."""
        key = setting.name, id(inputs)
        if key not in self._runs:
            with self._subject.compressed(setting.method, setting.budget) as c:
                logits = self._subject.logits(inputs)[:, -1]
                engine = engine_of(self._subject.model)
                assert engine is not None
                layouts = [(image.row, image.layout) for image in engine.trace.images]
                self._runs[key] = layouts, c.report(), logits
        return self._runs[key]

    def _keep(self, keep: Keep) -> Keep:
        return [layer.to(self._subject.bare.device) for layer in keep]

    def _staged(self, inputs: Inputs, keep: Keep) -> Tensor:
        def run() -> Tensor:
            return self._subject.logits(inputs, use_cache=False)[:, -1]

        return staged(self._subject.parts, run, keep)
