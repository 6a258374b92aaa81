"""`compress` and the handle it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, SupportsFloat

from torch import nn

from vlmcompress.budget.budget import Budget
from vlmcompress.defaults import AUTO
from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.installable import engine_for, warn_untested
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.engine import Engine, engine_of
from vlmcompress.patches.families.standing import known_types, standing_of
from vlmcompress.patches.sequence.call_trace import Trace
from vlmcompress.patches.signals.text_tower import LongText
from vlmcompress.report.report import Report
from vlmcompress.tuned import ProfileLike


class Compression:
    """A compressed model: a context manager, or call `remove()` when done."""

    def __init__(self, engine: Engine, processor: Any = None) -> None:
        self._engine, self._processor = engine, processor

    @classmethod
    def of(cls, model: nn.Module) -> Compression:
        """A handle of a compressed model: for one that was lost, or for a copy of the model.

        Raises:
            VLMCompressError: it is not compressed.
        """
        engine = engine_of(model)
        if engine is None:
            raise VLMCompressError(f"this {type(model).__name__} is not compressed")
        return cls(engine)

    @property
    def model(self) -> nn.Module:
        """The model that was given to `compress`; a removed handle does not keep it.

        Raises:
            VLMCompressError: after `remove()`.
        """
        installed = self._engine.installed
        if installed is None:
            raise VLMCompressError("this Compression was removed and holds no model any more")
        return installed.model

    def report(self) -> Report:
        """What the last `generate` or forward with images did; usable after `remove()`, too.

        The last of the thread that asks; of any thread, where this one made no such call.
        """
        engine = self._engine
        trace, budget = engine.trace, engine.planner.budget
        cost = {} if budget is None or not budget.is_cost else _cost(trace, budget)
        images = [image.report(index) for index, image in enumerate(trace.images)]
        name, reason = engine.planner.pipeline.name, engine.planner.reason
        return Report(
            method=name if reason is None else f"{AUTO}: {name}",
            budget=None if budget is None else str(budget),
            positions=engine.positions,
            order=engine.order,
            images=images,
            milliseconds=trace.milliseconds(),
            decode_tokens=trace.decode_steps,
            engaged=any(image.mean < image.before - image.masked for image in images),
            signals=engine.collected,
            dropped_before=engine.dropped_before,
            reason=reason,
            notes=[*engine.notes, *trace.notes],
            processor=self._processor,
            **cost,
        )

    def remove(self) -> None:
        """Restore the model exactly; harmless when called twice.

        Waits until the running calls of other threads have ended; calls that they begin meanwhile
        wait, and then run on the bare model.
        """
        self._engine.remove()

    def __enter__(self) -> Compression:
        if self._engine.installed is None:
            raise CompositionError("this Compression was removed: call compress() again")
        if self._engine.shared.held:
            raise CompositionError(
                "this Compression is in a with block already, which removes it at its end"
            )
        self._engine.shared.held = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def compress(
    model: nn.Module,
    method: str | Method | Sequence[Method] | None = None,
    budget: int | SupportsFloat | str | Budget | None = None,
    *,
    positions: Literal["keep", "renumber"] = "keep",
    order: Literal["raster", "method"] = "raster",
    processor: Any = None,
    text_tower: str | Path | tuple[nn.Module, Any] | LongText | None = None,
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
    **options: Any,
) -> Compression:
    """Drop or merge visual tokens of `model` until the handle is removed.

    Only this instance is hooked; no class, module or environment variable is changed. Calls of the
    model that other threads are in the middle of go on as the bare model began them.

    Args:
        model: a Hugging Face vision-language model of a supported family (`list_models()`), or the
            pipeline or PeftModel (LoRA and the like) that runs it; then it is the model in there
            that is hooked.
        method: a name (`"divprune"`), a composition (`"divprune+fastv"`), names with options
            (`"fastv(k=3)"`), or method objects. "auto" takes what was the most accurate for such a
            model and budget; the report says what and why.
        budget: mean number of visual tokens per image over decoder layers, as a count (64) or a
            share ("25%" or 0.25; 1 is one token, 1.0 all), or either for each frame of a clip ("16
            per frame"). Or what a call may cost up to its first token, as a share of the FLOPs of
            the full model ("0.4 flops") or as a time on this machine ("120 ms"). None takes the
            paper's own setting.
        positions: "keep" leaves kept tokens at their original position ids; "renumber" closes the
            gaps, as the reference code of several papers does.
        order: "raster", or "method" for the order in which a selector picked.
        processor: the model's processor or tokenizer, for `report().overlay()` and for methods that
            look at the question. With it the question is the text of the newest user turn after the
            turn's last picture (all its text where nothing follows the pictures), without system
            prompt, chat template, special tokens, padding, and blanks at both ends. Without it the
            question is all text after the last picture but tokens that the model's configuration
            names.
        text_tower: for methods that compare pictures with the question (`relevance`): the CLIP
            model that the vision tower was taken from, as a folder, a Hugging Face id, "tiny-clip",
            or a pair (CLIPModel, tokenizer). A question is cut to the length that it can read;
            a `LongText` of one of these reads it to its end.
            tiny-llava finds its own.
        max_memory: bytes, or a text ("2GB"): clips are encoded so many frames at a time that the
            tensors which vision tower and projector make for them take no more at once. Their
            features are those of the whole clip, so a method chooses what it would have chosen.
            Pixels and features are kept besides; pictures are encoded whole.
        profile: in the place of a method, the file that `vlmcompress tune` wrote for this model (or
            what `tune` gave): then "auto" takes what was found there for the budget, or for the
            nearest to it, and the report says how sure. One of another model is refused.
        **options: fields of the method, for example `seed=1`.

    Returns:
        The handle. Logits of a plain forward are those of the shortened sequence, padded on the
        left, so `logits[:, -1]` belongs to the last token of every prompt; where nothing at all
        was dropped they are those of the bare model, padded as it was asked.

    Raises:
        VLMCompressError: unknown method, option or model, a budget that is malformed or that the
            method cannot meet, methods that do not combine, a model that is compressed already.
            The message lists what is possible, and the model is left as it was.
    """
    engine = engine_for(
        model,
        method,
        budget,
        options,
        positions=positions,
        order=order,
        processor=processor,
        text_tower=text_tower,
        max_memory=max_memory,
        profile=profile,
    )
    try:
        engine.install()
        warn_untested(engine, stacklevel=3)
        return Compression(engine, processor)
    except BaseException:  # Ctrl-C can come at any moment
        engine.remove()
        raise


@dataclass(frozen=True)
class ModelInfo:
    """What is supported for one model type."""

    name: str
    """The `model_type` of its configuration."""
    classes: tuple[str, ...]
    stages: tuple[str, ...]
    images: bool
    video: bool
    signals: tuple[str, ...]
    state: str
    """"tested" on the transformers that is installed; "by structure": all that the engine needs is
    looked for in the model itself, and `compress` warns; or "refused"."""
    reason: str | None
    """Why it is not tested, or refused."""
    no_costs: str | None = None
    """Why a budget cannot be a cost (FLOPs or milliseconds), as no one knows the FLOPs; None where
    it can."""


def list_models() -> list[ModelInfo]:
    """All model types that transformers lists as image-text-to-text, and those plugged in.

    Types with an adapter of their own, which allows more stages and signals, come first.
    """
    return [
        ModelInfo(
            name=name,
            classes=(facts.class_name,),
            stages=facts.stages,
            images=facts.images,
            video=facts.video,
            signals=tuple(sorted(facts.signals)),
            no_costs=facts.no_costs,
            **vars(standing_of(name)),
        )
        for name, facts in known_types().items()
    ]


def _cost(trace: Trace, budget: Budget) -> dict[str, Any]:
    """What a report says of a budget that is a cost."""
    solved, values = trace.solved, {"asked": str(budget)}
    if solved is None:
        return values
    measured = solved.measured
    if budget.unit == "ms" and trace.prefilled:
        measured = trace.first_token()
    known = {"predicted": solved.predicted, "measured": measured, "resolved": solved.share}
    return {**values, **known}
