"""Run VLMEvalKit on a compressed model.

python -m vlmcompress.eval.vlmevalkit --run VLMEvalKit/run.py --name llava-divprune-64
    --pretrained llava-hf/llava-1.5-7b-hf --method divprune --budget 64 -- --data POPE

VLMEvalKit has no plug-ins: this puts a model into its tables and then runs its run.py, which gets
everything behind the "--".
"""

from __future__ import annotations

import argparse
import functools
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.harnesses.harness import HarnessSettings, Subject, conversation
from vlmcompress.patches.families.registry import family_of

CLASS = "VLMCompress"
"""Name of the model class in `vlmeval.vlm`, for run.py's --config."""

MAX_NEW_TOKENS = 512
FRAMES, FRAMES_PER_SECOND = 8, 1.0
"""How clips are sampled until the data set says so; VLMEvalKit asks for models that have both."""

_OF_THE_DATA = ("frames", "fps")


def model_class(base: type[Any]) -> type[Any]:
    """The class that VLMEvalKit runs.

    Args:
        base: `vlmeval.vlm.base.BaseModel`.
    """

    class VLMCompress(base):  # type: ignore[misc]
        """Any supported model under one method and budget, greedy, one prompt at a time.

        Args:
            use_vllm: given by VLMEvalKit for some names; must be false.
            max_new_tokens: length of an answer.
            settings: see `HarnessSettings`.

        Raises:
            VLMCompressError: an argument is unknown, missing or wrong, or the model cannot be had.
        """

        INTERLEAVE = True
        allowed_types = ("text", "image", "video")
        is_api = False

        def __init__(
            self, use_vllm: bool = False, max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any
        ) -> None:
            super().__init__()
            if use_vllm:
                raise VLMCompressError("use_vllm is not possible: vlmcompress runs transformers")
            self.subject = Subject(HarnessSettings.read(settings))
            self.max_new_tokens = max_new_tokens
            # Whether data sets give clips as files, which are sampled here, or as single images.
            self.VIDEO_LLM = family_of(self.subject.model).video
            self.nframe: int | None = FRAMES
            self.fps: float | None = FRAMES_PER_SECOND

        def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: Any = None) -> str:
            """Answer a prompt of texts, images and clips, in the order in which they come."""
            sampling = replace(
                self.subject.settings,
                frames=self.nframe,
                fps=None if self.nframe else self.fps,
            )
            prompt = conversation(turns(message), sampling)
            (answer,) = self.subject.ask([prompt], max_new_tokens=self.max_new_tokens)
            return answer.text

    return VLMCompress


def turns(message: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A message of VLMEvalKit, parts `{"type", "value"[, "role"]}`, as `conversation` takes it."""
    found: list[dict[str, Any]] = []
    for part in message:
        role = part.get("role", "user")
        if not found or found[-1]["role"] != role:
            found.append({"role": role, "content": []})
        name = "text" if part["type"] == "text" else "url"
        found[-1]["content"].append({"type": part["type"], name: part["value"]})
    return found


def register(name: str, settings: Mapping[str, Any]) -> None:
    """Put a model into VLMEvalKit's tables, in this process.

    Args:
        name: for `--model`.
        settings: of `HarnessSettings`, and `max_new_tokens`.

    Raises:
        VLMCompressError: VLMEvalKit is not there, or has a model of this name.
    """
    try:
        import vlmeval.config
        import vlmeval.vlm
        from vlmeval.vlm.base import BaseModel
    except ImportError as error:
        raise VLMCompressError(
            f"cannot import VLMEvalKit ({error}): clone it, install what it needs in an "
            "environment of its own, and give --run the run.py of the clone"
        ) from error
    if name in vlmeval.config.supported_VLM:
        raise VLMCompressError(f"VLMEvalKit has a model {name!r}: give another --name")
    made: Callable[..., Any] = model_class(BaseModel)
    setattr(vlmeval.vlm, CLASS, made)
    vlmeval.config.supported_VLM[name] = functools.partial(made, **settings)


def launch(run: Path, name: str, settings: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Register a model and run VLMEvalKit's run.py as a program; its exit passes through.

    Args:
        run: where run.py is.
        name: of the model.
        settings: of `register`.
        arguments: of run.py; `--model NAME` is added unless they have --model or --config.

    Raises:
        VLMCompressError: there is no such file; otherwise what `register` raises.
    """
    if not run.is_file():
        raise VLMCompressError(f"there is no {str(run)!r}: give the run.py of a VLMEvalKit clone")
    sys.path.insert(0, str(run.resolve().parent))
    register(name, settings)
    chosen = [] if {"--model", "--config"} & set(arguments) else ["--model", name]
    sys.argv = [str(run), *chosen, *arguments]
    runpy.run_path(str(run), run_name="__main__")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and launch."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    border = given.index("--") if "--" in given else len(given)
    own = vars(_parser().parse_args(given[:border]))
    run, name, length = own.pop("run"), own.pop("name"), own.pop("max_new_tokens")
    settings = {key: value for key, value in own.items() if value is not None}
    try:
        HarnessSettings.read(settings)
        launch(run, name, {**settings, "max_new_tokens": length}, given[border + 1 :])
    except VLMCompressError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlmcompress.eval.vlmevalkit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="run.py of a clone of VLMEvalKit")
    parser.add_argument("--name", required=True, help="of the model in VLMEvalKit's tables")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    for field in fields(HarnessSettings):
        if field.name in _OF_THE_DATA:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "trust_remote_code":
            parser.add_argument(flag, action="store_true", default=None)
        else:
            parser.add_argument(flag)
    return parser


if __name__ == "__main__":
    main()
