"""What lmms-eval finds: the entry point, and its ways of asking put into ours.

Nothing of lmms-eval is imported before it calls `manifests`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmcompress.errors import VLMCompressError

if TYPE_CHECKING:
    from vlmcompress.eval.harnesses.harness import HarnessAnswer

ALIASES = ("vlmcompress_llava", "vlmcompress_qwen")
DEFAULT_NEW_TOKENS = 1024
"""Length of an answer where a task says nothing, as of the models that lmms-eval ships."""

_ALWAYS = (
    *("max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "early_stopping"),
    *("repetition_penalty", "no_repeat_ngram_size"),
)
_SAMPLING = ("temperature", "top_p", "top_k")
_ADDED_STOP = "\n\n"
"""lmms-eval stops every task here that names nothing; the chat models that it ships take no notice,
and an answer in paragraphs would lose all but the first."""


def manifests() -> list[Any]:
    """For the entry point group `lmms_eval.models`: the model "vlmcompress" and its other names."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "vlmcompress.eval.harnesses.lmms_model.VLMCompress"
    return [ModelManifest(model_id="vlmcompress", chat_class_path=path, aliases=ALIASES)]


@dataclass(frozen=True)
class Generation:
    """How a task wants its answers.

    Attributes:
        arguments: of `generate`.
        stops: where an answer is cut off.
        ignored: what it asked for besides, such as sizes of images.
    """

    arguments: dict[str, Any]
    stops: tuple[str, ...]
    ignored: tuple[str, ...]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Generation:
        """From the `generation_kwargs` of a task.

        An answer is sampled if `do_sample` says so or, where it is absent, if the temperature is
        above zero; at zero it is greedy in any case.
        """
        values = {name: value for name, value in given.items() if value is not None}
        stops = values.pop("until", ())
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        temperature = values.get("temperature")
        sample = bool(values.pop("do_sample", temperature)) and temperature != 0
        taken = (*_ALWAYS, *(_SAMPLING if sample else ()))
        arguments = {name: values[name] for name in taken if name in values}
        return cls(
            {"max_new_tokens": DEFAULT_NEW_TOKENS, "do_sample": sample, **arguments},
            tuple(stop for stop in stops if stop and stop != _ADDED_STOP),
            tuple(name for name in values if name not in (*_ALWAYS, *_SAMPLING)),
        )

    def cut(self, text: str) -> str:
        """An answer up to the first of the stops."""
        for stop in self.stops:
            text = text.partition(stop)[0]
        return text.strip()


def read_batch_size(given: Any) -> int:
    """From the command line.

    Raises:
        VLMCompressError: it is no whole number above zero; "auto" is none either.
    """
    try:
        size = int(given)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise VLMCompressError(f"batch_size={given!r} is not possible: give a number such as 8")
    return size


def summarize(answers: Sequence[HarnessAnswer]) -> dict[str, float]:
    """What lmms-eval shows beside its own numbers: means over prompts with pictures."""
    seen = [answer for answer in answers if answer.before]
    if not seen:
        return {}
    before = sum(answer.before for answer in seen)
    kept = sum(answer.kept for answer in seen)
    return {
        "visual_tokens": before / len(seen),
        "visual_tokens_kept": kept / len(seen),
        "visual_share_kept": kept / before,
    }
