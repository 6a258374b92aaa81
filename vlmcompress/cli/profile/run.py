"""The work of `vlmcompress profile`: what is asked for, made ready and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress import defaults
from vlmcompress.api import compress
from vlmcompress.asking.asker import Asker
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.memory import bytes_of
from vlmcompress.cli.ask.media import MediaArguments
from vlmcompress.cli.ask.request import Request, check
from vlmcompress.cli.common import between_commas, progress, silent_libraries, tell
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.images import read_image
from vlmcompress.media.video import Video, read_video
from vlmcompress.methods.composition.spec import parse
from vlmcompress.models import loading
from vlmcompress.models.names import ASSETS
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.profiler.measure import WARM_UP, Prepare, Profile, Setting, Wrap, profile
from vlmcompress.profiler.published_shapes import configuration
from vlmcompress.profiler.random_prompts import prompt
from vlmcompress.profiler.random_weights import build
from vlmcompress.registry import unknown
from vlmcompress.tuned import Tuned, all_asked_for

_PICTURE = ASSETS / "samples" / "street.png"


@dataclass(frozen=True)
class MethodAtBudget:
    """A method with a budget, both as the user wrote them."""

    method: str
    budget: str | None
    """None for a method with a threshold."""


@dataclass(frozen=True)
class RandomShape:
    """A shape with random weights, and what is changed of it."""

    name: str
    layers: int | None
    encoder_layers: int | None
    visual_tokens: int | None
    text_tokens: int | None


@dataclass(frozen=True)
class ProfilePrompt:
    """A model, what it is given in every run, and what methods may need besides."""

    name: str
    model: nn.Module
    processor: Any
    prepare: Prepare


def ask_for(
    methods: str | None,
    budget: str | None,
    budgets: str | None,
    profile: Path | None = None,
    max_memory: str | None = None,
) -> list[MethodAtBudget]:
    """Every method with every budget, read as far as that goes without a model.

    Raises:
        VLMCompressError: a method, budget or size that is malformed or unknown, both kinds of
            budgets, one beside a threshold, or a profile that cannot be read.
    """
    if max_memory is not None:
        bytes_of(max_memory)
    if methods is None and profile is None:
        methods = defaults.METHOD
    if budget is not None and budgets is not None:
        raise VLMCompressError("--budget and --budgets are both given: give one of them")
    given = budget is not None or budgets is not None
    texts = [defaults.BUDGET if budget is None else budget]
    if budgets is not None:
        texts = between_commas(budgets)
    for text in texts:
        Budget.parse(text)
    asked = []
    named = [] if methods is None else between_commas(methods)
    for spec in all_asked_for(named, profile):
        pipeline = None if spec == defaults.AUTO else parse(spec)
        if pipeline is not None and pipeline.has_threshold:
            if given:
                pipeline.check_thresholds(texts[0])
            asked.append(MethodAtBudget(spec, None))
        else:
            asked += [MethodAtBudget(spec, text) for text in texts]
    return asked


def taken(
    asked: Sequence[MethodAtBudget], profile: Path | None, model: nn.Module
) -> list[MethodAtBudget]:
    """The settings, with what a profile takes in the place of "auto"; says so on stderr.

    Raises:
        VLMCompressError: the profile is of another model, or knows nothing of a budget.
    """
    if profile is None:
        return list(asked)
    tuned, parts = Tuned.read(profile), ModelParts.of(model)
    found: list[MethodAtBudget] = []
    for one in asked:
        if one.method == defaults.AUTO:
            choice = tuned.choice(parts, None if one.budget is None else Budget.parse(one.budget))
            tell([choice.reason])
            one = replace(one, method=choice.spec)
        found.append(one)
    return list(dict.fromkeys(found))


def sample_prompt(
    media: tuple[Any, ...],
    shape_options: Mapping[str, int | None],
    model: str | None,
    device: str | None,
    dtype: str | None,
    attention: str,
    batch: int,
) -> ProfilePrompt:
    """A model with weights, and images and videos of which everything is timed.

    Args:
        media: files, images, videos, question, frames and fps of the command line.
        shape_options: options for random weights, which must not be given.
        model: name, folder or id.
        device: where it goes.
        dtype: of its weights.
        attention: implementation.
        batch: rows.

    Raises:
        VLMCompressError: bad input of any kind.
    """
    for name, value in shape_options.items():
        if value is not None:
            raise VLMCompressError(f"{name} is for --random-weights")
    files, images, videos, question, frames, fps = media
    if not (files or images or videos):
        images = [str(_PICTURE)]
    arguments = MediaArguments([*(files or [])], images or [], videos or [], question, frames, fps)
    request = check(arguments, model, None, None, [], None)
    tell(request.notes)
    with progress(f"loading {request.model}"):
        loaded, processor = loading.load(
            request.model, device=device, dtype=dtype, attn_implementation=attention
        )

    def prepare(stage: Any) -> Mapping[str, Any]:
        stage("media")
        read = [_read(file, one, arguments) for file, one in _pairs(request)]
        stage("preprocess")
        return _rows(Asker(loaded, processor, read, request.question, 1).inputs, batch)

    return ProfilePrompt(request.model, loaded, processor, prepare)


def random_prompt(
    shape: RandomShape,
    others: Sequence[object],
    device: str | None,
    dtype: str | None,
    attention: str,
    batch: int,
) -> ProfilePrompt:
    """A published shape with random weights and a random image, ready on the device.

    Args:
        shape: which.
        others: options for real models, which must not be given.
        device: where it goes.
        dtype: of its weights; by default bfloat16.
        attention: implementation.
        batch: rows.

    Raises:
        VLMCompressError: bad input of any kind.
    """
    if any(others):
        raise VLMCompressError("--random-weights takes neither --model nor images nor videos")
    configuration(shape.name, shape.layers, shape.encoder_layers)
    with progress(f"making {shape.name}"):
        model = build(
            shape.name,
            device=device,
            dtype=_dtype(dtype),
            attention=attention,
            layers=shape.layers,
            encoder_layers=shape.encoder_layers,
        )
    text = 40 if shape.text_tokens is None else shape.text_tokens
    inputs = prompt(model, shape.name, visual_tokens=shape.visual_tokens, text=text, batch=batch)
    return ProfilePrompt(f"{shape.name}, random weights", model, None, lambda stage: inputs)


def measure(
    prompt: ProfilePrompt,
    asked: Sequence[MethodAtBudget],
    output_tokens: int,
    rounds: int,
    max_memory: str | None = None,
) -> Profile:
    """Profile the model in all settings, and say on stderr how far it is.

    Where memory is limited it is so in every setting, that of all visual tokens among them.

    Raises:
        VLMCompressError: the model cannot be profiled.
    """

    def wrap(method: str, budget: str | None) -> Wrap:
        return lambda model: compress(
            model, method, budget, processor=prompt.processor, max_memory=max_memory
        )

    settings = [Setting(one.method, wrap(one.method, one.budget), one.budget) for one in asked]
    with Advance((len(settings) + 2) * (WARM_UP + rounds)) as advance:
        found = profile(
            prompt.model,
            prompt.prepare,
            wrap("text-only", None),
            settings,
            everything=None if max_memory is None else wrap("full", None),
            output_tokens=output_tokens,
            rounds=rounds,
            progress=advance,
        )
    about = {"model": prompt.name, "max_memory": max_memory}
    return Profile({**about, **found.environment}, found.rows)


def _pairs(request: Request) -> list[tuple[str, Any]]:
    return list(zip(request.files, request.media, strict=True))


def _read(file: str, known: Any, arguments: MediaArguments) -> Any:
    if not isinstance(known, Video):
        return read_image(file)
    with silent_libraries():
        return read_video(file, arguments.frames, arguments.fps)


def _rows(inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Inputs for `batch` copies of the prompt; all begin with rows, images or patches."""
    if batch == 1:
        return dict(inputs)
    return {
        name: torch.cat([value] * batch) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def _dtype(name: str | None) -> torch.dtype:
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is None:
        return torch.bfloat16
    if name not in kinds:
        raise unknown("dtype", name, list(kinds))
    return kinds[name]
