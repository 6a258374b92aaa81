"""Feature calls of a compressed model: what happens before, inside and after the vision tower."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vlmcompress.budget.latency_model import median_of, memory_of
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import CompositionError, UnsupportedCallError
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    Resizer,
    TowerDropper,
)
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.encoder.packed_merging import PackedTowerMerging
from vlmcompress.patches.encoder.packed_tower import PackedTowerDropping
from vlmcompress.patches.encoder.patch_dropping import PatchDropping
from vlmcompress.patches.encoder.resizing import Resizing
from vlmcompress.patches.encoder.streaming import Streaming
from vlmcompress.patches.encoder.tile_merging import TileTowerMerging
from vlmcompress.patches.encoder.tile_tower import TileTowerDropping
from vlmcompress.patches.encoder.tile_units import Ahead
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.arguments import cache_of, repeated
from vlmcompress.patches.hooks.attachments import CALL, Attachments
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.host_chunk import HostChunk
from vlmcompress.patches.sequence.placeholders import Prompt, locate
from vlmcompress.patches.signals.known_features import note
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Layout

Run = Callable[..., Any]


class BeforeProjector(Protocol):
    """Lets a method act before the projector of one model.

    The feature call must give one feature for each placeholder of the prompts, so what is saved is
    put back as copies, and `Encoded.survivors` says which tokens are none.
    """

    dropped_before: tuple[int, int] | None
    """The layer of the tower before which tokens leave it, and of how many; None elsewhere."""

    takes_chunks: bool
    """Whether a feature call may be cut between frames."""

    def hook(self, attached: Attachments) -> None:
        """Hook the vision tower."""
        ...

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        """How the placeholders of a feature call lie, by its arguments alone.

        Raises:
            BudgetError: that is not known before the call.
        """
        ...

    def encode(self, modality: str, call: Mapping[str, Any], run: Run, planner: Planner) -> Any:
        """Run a feature call.

        Args:
            modality: "image" or "video".
            call: its arguments by name, which follow what is changed.
            run: the call itself, with other values for some arguments.
            planner: for the prompt that the pixels belong to.

        Returns:
            What it returned, and what `put_back` needs to know.
        """
        ...

    def put_back(
        self, done: Any, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        """Change `output` in place to one feature for each placeholder.

        Args:
            done: of `encode`.
            modality: "image" or "video".
            call: the arguments that the encoder was really given.
            output: of the feature call.
            encoded: what `Signals` knows of that.
        """
        ...


def before_projector(parts: ModelParts, planner: Planner, ahead: Ahead) -> BeforeProjector | None:
    """For the method of the planner's pipeline that acts before the projector, if there is one.

    Args:
        parts: of the model.
        planner: with the pipeline.
        ahead: gives the layouts of the images of the running call.

    Raises:
        UnsupportedModelError: the model's vision tower does not allow it.
    """
    method = planner.pipeline.upstream
    if method is None:
        return None
    packed = "pixels" in parts.family.stages
    if isinstance(method, EncoderMethod):
        if packed:
            return PackedTowerMerging(parts, planner)
        return TileTowerMerging(parts, planner, ahead)
    if isinstance(method, Resizer):
        return Resizing(parts, planner)
    if isinstance(method, TowerDropper):
        if packed:
            return PackedTowerDropping(parts, planner)
        return TileTowerDropping(parts, planner, ahead)
    return PatchDropping(parts, planner)


class FeatureCalls:
    """The feature calls of a compressed model: what happens before, inside and after the tower."""

    def __init__(self, installed: Installed) -> None:
        """Find what the pipeline needs.

        Raises:
            UnsupportedModelError: the model's vision tower does not allow it.
        """
        self._installed = installed
        self._method = before_projector(installed, installed.planner, self._layouts_ahead)
        self._streaming = None
        if installed.max_memory is not None:
            self._streaming = Streaming(installed, installed.max_memory)
            self._check_chunks()

    @property
    def dropped_before(self) -> tuple[int, int] | None:
        """The layer of the vision tower before which tokens leave, and of how many."""
        return None if self._method is None else self._method.dropped_before

    def calls(self) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
        """Module and name of each call, and what runs instead: `call(original, ...)`."""
        family, base = self._installed.family, self._installed.base
        for modality in family.feature_calls:
            owner, name = family.feature_call(base, modality)
            yield owner, name, functools.partial(self._call, modality)

    def hook(self, attached: Attachments) -> None:
        """Hook the vision tower where a method acts in it."""
        if self._method is not None:
            self._method.hook(attached)

    def _check_chunks(self) -> None:
        if self._method is not None and not self._method.takes_chunks:
            upstream = self._installed.planner.pipeline.upstream
            raise CompositionError(
                f"{getattr(upstream, 'name', upstream)} works on the patches of a whole clip, "
                "and max_memory encodes it in pieces: leave one of them out"
            )

    def check(self, encoded: Mapping[str, Encoded]) -> None:
        """Refuse features that were encoded without this method, or with another one.

        Raises:
            UnsupportedCallError: some were.
        """
        signals, name = self._installed.signals, self._installed.planner.pipeline.name
        for modality, found in encoded.items():
            by = found.by if found.survivors is not None else None
            if by is not (None if self._method is None else signals.mark):
                raise UnsupportedCallError(
                    f"the {modality} was not encoded with {name}: encode it after compress(), or "
                    "give its pixels"
                )

    def _call(self, modality: str, original: Run, *args: Any, **kwargs: Any) -> Any:
        """One feature call; what became known of its features is noted for the prefill."""
        installed, method = self._installed, self._method
        device = next(installed.base.parameters()).device
        with installed.signals.recording() as record:
            if record is None:  # some encode clips by calling the method for images
                return original(*args, **kwargs)
            call, run = self._bound(modality, original, args, kwargs)
            if self._streaming is not None:
                run = self._streaming.over(modality, call, run, record)
            planner = installed.planner
            if method is not None:
                planner = self._planner_ahead(method, call, run)
                record.clear()  # of a run for its time
            with installed.trace.timed("encoder", device):
                if method is None:
                    output, done = run(), None
                else:
                    output, done = method.encode(modality, call, run, planner)
        with installed.trace.timed("signals", device):
            arguments = installed.family.feature_arguments(modality, call)
            encoded = installed.signals.encoded(modality, arguments, output, record)
            if encoded is None:
                if method is not None:
                    raise UnsupportedCallError("a compressed model needs return_dict=True")
                return output
            if method is not None:
                encoded = method.put_back(done, modality, arguments, output, encoded)
        note(installed.family.features(output), encoded)
        installed.now.encoded[modality] = installed.now.noted[modality] = encoded
        return output

    def _planner_ahead(
        self, method: BeforeProjector, call: Mapping[str, Any], run: Callable[[], Any]
    ) -> Planner:
        """The planner of a prompt that is about to be encoded.

        Args:
            method: that acts before the projector.
            call: arguments of the feature call.
            run: the bare feature call.

        Raises:
            UnsupportedCallError: the prompt is not known, as features are encoded by themselves.
            BudgetError: the size of the images is not known yet, or the budget cannot be met.
        """
        installed = self._installed
        now = installed.now
        if installed.solver is None:
            return installed.planner
        if now.solved is None:
            device = next(installed.base.parameters()).device

            def encoder() -> float:
                known = memory_of(installed.model).encoder
                key = tuple(tuple(v.shape) for v in call.values() if isinstance(v, Tensor))
                if key not in known:
                    known[key] = median_of(run, device, runs=1)
                return known[key]

            prompt = self._prompt_ahead(method)
            with now.aside():
                now.solved = installed.solver.solve(prompt, encoder)
        return now.solved.planner

    def _layouts_ahead(self) -> list[Layout]:
        """How the images of the running call lie."""
        assert self._method is not None
        return [image.layout for image in self._prompt_ahead(self._method).images]

    def _prompt_ahead(self, method: BeforeProjector) -> Prompt:
        """The prompt of the call that this thread is in, from its arguments alone."""
        installed = self._installed
        now, family, planner = installed.now, installed.family, installed.planner
        given, chunk = now.call or now.given or {}, now.call is not None
        ids, cache = given.get("input_ids"), cache_of(given)
        if not isinstance(ids, Tensor):
            raise UnsupportedCallError(
                f"budget {planner.budget} takes {planner.pipeline.name} to know the prompt before "
                "it is encoded: give pixels to the model together with input_ids"
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = two_dimensional(given.get("attention_mask"))
        if not chunk:  # `generate` is given earlier turns once more
            ids, mask = repeated(installed.model, given, ids[:, past:], mask)
        layouts: dict[str, Sequence[Layout]] = {}
        for modality in family.feature_calls:
            names = self._parameters(modality).parameters
            call = {name: given[name] for name in names if given.get(name) is not None}
            if any(name.startswith("pixel_values") for name in call):
                layouts[modality] = method.layouts(modality, call)
        seen = HostChunk.of(ids, mask)
        tokens = family.placeholders(installed.model)
        images = locate(seen.ids, tokens, layouts, family.continues, family.of_pieces)
        # What `generate` has written since is no part of the prompt.
        end = None if now.prompt is None else now.prompt - past
        return Prompt.of(seen.unmasked[:, :end], images)

    def _parameters(self, modality: str) -> inspect.Signature:
        """Of a feature call; one that is the call of a module takes what its forward does."""
        owner, name = self._installed.family.feature_call(self._installed.base, modality)
        return inspect.signature(owner.forward if name == CALL else getattr(owner, name))

    def _bound(
        self, modality: str, original: Run, args: Any, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], Run]:
        """The arguments of a call by name, and the call with other values for some of them."""
        parameters = self._parameters(modality)
        call = parameters.bind_partial(*args, **kwargs).arguments

        def run(**changed: Any) -> Any:
            # By position or by name as they came: decorators of transformers tell the two apart.
            named = {name: changed[name] for name in changed if name in kwargs}
            pairs = zip(parameters.parameters, args, strict=False)
            call.update(changed)
            return original(*(changed.get(*one) for one in pairs), **(kwargs | named))

        return call, run
