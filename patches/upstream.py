"""Feature calls of a compressed model: what happens before, inside and after the vision tower."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from vlmcompress.budget import Planner
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.upstream import EncoderMethod, Resizer
from vlmcompress.patches.attach import Attachments
from vlmcompress.patches.family import Family
from vlmcompress.patches.leaving_out import LeavingOut
from vlmcompress.patches.merging_tower import MergingTower
from vlmcompress.patches.resizing import Resizing
from vlmcompress.patches.signals import Encoded, Signals
from vlmcompress.patches.solving import planner_ahead
from vlmcompress.tokens import Layout

if TYPE_CHECKING:
    from vlmcompress.patches.engine import Engine


Run = Callable[..., Any]


class Upstream(Protocol):
    """Lets a method act before the projector of one model.

    The feature call must give one feature for each placeholder of the prompts, so what is saved is
    put back as copies, and `Encoded.left` says which tokens are none.
    """

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


def upstream_of(model: nn.Module, family: Family, planner: Planner) -> Upstream | None:
    """For the method of the planner's pipeline that acts before the projector, if there is one.

    Raises:
        UnsupportedModelError: the model's vision tower does not allow it.
    """
    method = planner.pipeline.upstream
    if method is None:
        return None
    if isinstance(method, EncoderMethod):
        return MergingTower(model, family, planner)
    if isinstance(method, Resizer):
        return Resizing(model, family, planner)
    return LeavingOut(model, family, planner)


def encode(
    engine: Engine, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, Encoded | None]:
    """A feature call of a compressed model; None beside its output inside another one."""
    device, upstream = next(engine.base.parameters()).device, engine.upstream
    with engine.signals.recording() as record:
        if record is None:  # some encode clips by calling the method for images
            return original(*args, **kwargs), None
        parameters = inspect.signature(original)
        call = parameters.bind_partial(*args, **kwargs).arguments

        def run(**changed: Any) -> Any:
            # By position or by name as they came: decorators of transformers tell the two apart.
            named = {name: changed[name] for name in changed if name in kwargs}
            pairs = zip(parameters.parameters, args, strict=False)
            call.update(changed)
            return original(*(changed.get(*one) for one in pairs), **(kwargs | named))

        planner = engine.planner
        if upstream is not None:
            planner = planner_ahead(engine, call, run)
            record.clear()  # of a run for its time
        with engine.trace.timed("encoder", device):
            if upstream is None:
                output, done = original(*args, **kwargs), None
            else:
                output, done = upstream.encode(modality, call, run, planner)
    with engine.trace.timed("signals", device):
        encoded = engine.signals.encoded(modality, call, output, record)
        if encoded is None:
            if upstream is not None:
                raise UnsupportedCallError("a compressed model needs return_dict=True")
            return output, None
        if upstream is not None:
            encoded = upstream.put_back(done, modality, call, output, encoded)
    Signals.hand_over(output, encoded)
    return output, encoded


def check_handed_over(engine: Engine, encoded: Mapping[str, Encoded]) -> None:
    """Refuse features that were encoded without the engine's method, or with another one.

    Raises:
        UnsupportedCallError: some were.
    """
    for modality, found in encoded.items():
        by = found.by if found.left is not None else None
        if by is not (None if engine.upstream is None else engine.signals):
            raise UnsupportedCallError(
                f"the {modality} was not encoded with {engine.planner.pipeline.name}: encode it "
                "after compress(), or give its pixels"
            )
