"""Feature calls of a compressed model: what happens before, inside and after the vision tower."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from vlmcompress.budget.latency_model import median_of, memory_of
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.contracts.before_projector import EncoderMethod, Resizer
from vlmcompress.patches.encoder.patch_dropping import LeavingOut
from vlmcompress.patches.encoder.patch_merging import MergingTower
from vlmcompress.patches.encoder.resizing import Resizing
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.hooks.arguments import cache_of
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.placeholders import Prompt, locate
from vlmcompress.patches.signals.signals import Encoded, Signals
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


def planner_ahead(engine: Engine, call: Mapping[str, Any], run: Callable[[], Any]) -> Planner:
    """The planner of a prompt that is about to be encoded.

    Args:
        engine: with a method before the projector.
        call: arguments of the feature call.
        run: the bare feature call.

    Raises:
        UnsupportedCallError: the prompt is not known, as features are encoded by themselves.
        BudgetError: the size of the images is not known yet, or the budget cannot be met.
    """
    if engine.solver is None:
        return engine.planner
    now = engine.now
    if now.solved is None:
        device = next(engine.base.parameters()).device

        def encoder() -> float:
            known = memory_of(engine.model).encoder
            key = tuple(tuple(v.shape) for v in call.values() if isinstance(v, Tensor))
            if key not in known:
                known[key] = median_of(run, device, runs=1)
            return known[key]

        prompt = _prompt_ahead(engine)
        with now.aside():
            now.solved = engine.solver.solve(prompt, encoder)
    return now.solved.planner


def _prompt_ahead(engine: Engine) -> Prompt:
    """The prompt of the call that this thread is in, from its arguments alone."""
    given, chunk = engine.now.call or engine.now.given or {}, engine.now.call is not None
    ids, cache = given.get("input_ids"), cache_of(given)
    if not isinstance(ids, Tensor):
        raise UnsupportedCallError(
            f"budget {engine.planner.budget} takes {engine.planner.pipeline.name} to know the "
            "prompt before it is encoded: give pixels to the model together with input_ids"
        )
    if cache is not None and not chunk:  # `generate` is given earlier turns once more
        ids = ids[:, int(cache.get_seq_length()) :]
    assert engine.upstream is not None
    family = engine.family
    layouts: dict[str, Sequence[Layout]] = {}
    for modality, name in family.feature_calls.items():
        names = inspect.signature(getattr(engine.base, name)).parameters
        call = {name: given[name] for name in names if given.get(name) is not None}
        if any(name.startswith("pixel_values") for name in call):
            layouts[modality] = engine.upstream.layouts(modality, call)
    images = locate(ids, family.placeholders(engine.model), layouts, family.continues)
    mask = two_dimensional(given.get("attention_mask"))
    return Prompt.of(ids, None if mask is None else mask[:, -ids.shape[1] :].bool(), images)
