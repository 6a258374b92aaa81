"""What a method wants to know beside the features: collected only where it says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.pipeline import Pipeline
from vlmcompress.patches import text_tower
from vlmcompress.patches.encoders import towers
from vlmcompress.patches.family import Family
from vlmcompress.patches.instruction import Instruction
from vlmcompress.patches.spans import Located
from vlmcompress.patches.threads import PerThread
from vlmcompress.patches.tower import FROM_TOWER, Record, Tap
from vlmcompress.tokens import Grid, Layout, VisualTokens

if TYPE_CHECKING:
    from vlmcompress.patches.reduce import Reducing

_ENCODED = "_vlmcompress_encoded"


@dataclass(frozen=True)
class Encoded:
    """What one feature call gave: an entry per piece (image, clip or tile)."""

    layouts: Sequence[Layout]
    signals: Sequence[Mapping[str, Any]]
    """What `Tap.collect` gave."""
    by: Signals
    """Who collected it."""


class Signals:
    """Collects what the methods of a pipeline need from one model."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        pipeline: Pipeline,
        processor: Any = None,
        tower: Any = None,
    ) -> None:
        """Find out what is needed and where it comes from.

        Args:
            model: of the family.
            family: its adapter.
            pipeline: the methods.
            processor: reads the prompts, for `text` and `relevance`; see `Instruction`.
            tower: text tower for `relevance`; see `text_tower.find`.

        Raises:
            VLMCompressError: the model does not give it, or it takes a processor or a text tower
                that is missing or unfit.
        """
        self._model, self._family, self._name = model, family, pipeline.name
        base, needs = family.base(model), pipeline.needs
        given = family.encoder.gives(base)
        if needs - given:
            raise UnsupportedModelError(
                f"{pipeline.name} needs {', '.join(sorted(needs - given))}, which this "
                f"{family.name} model does not give (it gives {', '.join(sorted(given))})"
            )
        self._needs = needs
        self._thread = PerThread()
        self._tap = Tap(family.encoder, base, pipeline) if needs & FROM_TOWER else None
        if needs & {"text", "relevance"}:
            self._instruction = Instruction.of(processor, _named_tokens(model, family))
        if "relevance" in needs:
            if processor is None:
                raise CompositionError(
                    f"{pipeline.name} compares images with the words of the prompt: "
                    "give compress(..., processor=...)"
                )
            assert self._tap is not None
            first = towers(family.encoder, base)[0]
            self._text_tower = text_tower.find(tower, first, self._tap.width)
            self._tap.text_tower = self._text_tower

    def hooks(self) -> list[RemovableHandle]:
        """Hook the layers that are needed, and no others."""
        return [] if self._tap is None else self._tap.hooks()

    @contextmanager
    def recording(self) -> Iterator[Record | None]:
        """While a feature call runs. Gives None inside another one, whose record goes on."""
        if getattr(self._thread, "busy", False):
            yield None
            return
        self._thread.busy = True
        try:
            with (
                nullcontext(Record(list)) if self._tap is None else self._tap.recording() as record
            ):
                yield record
        finally:
            self._thread.busy = False

    @torch.no_grad()
    def encoded(
        self, modality: str, call: Mapping[str, Any], output: Any, record: Record
    ) -> Encoded | None:
        """What a feature call gave; None if it gave no features.

        Args:
            modality: "image" or "video".
            call: its arguments by name.
            output: what it returned. `generate()` encodes before the prefill and hands this over,
                so the result travels with it.
            record: of `recording`.
        """
        features = getattr(output, "pooler_output", None)
        if features is None:
            return None
        layouts = self._family.layouts(self._model, modality, features, call)
        found = self._encoded(modality, call, layouts, record)
        setattr(output, _ENCODED, found)
        return found

    def handed_over(self, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Modality -> what was encoded before this forward of the base model.

        Raises:
            UnsupportedCallError: it was encoded without collecting what is needed.
        """
        found = {}
        for modality, output in (call.get("mm_encoder_outputs") or {}).items():
            features = getattr(output, "pooler_output", None)
            if features is None:
                continue
            known: Encoded | None = getattr(output, _ENCODED, None)
            if self._tap is not None and (known is None or known.by is not self):
                raise UnsupportedCallError(
                    f"{self._name} needs {', '.join(sorted(self._needs & FROM_TOWER))}: encode the "
                    f"{modality} after compress(), or give its pixels"
                )
            if known is None:
                layouts = self._family.layouts(self._model, modality, features, call)
                known = self._encoded(modality, call, layouts, Record(list))
            found[modality] = known
        return found

    def _encoded(
        self, modality: str, call: Mapping[str, Any], layouts: Sequence[Layout], record: Record
    ) -> Encoded:
        if self._tap is None:
            return Encoded(layouts, [{} for _ in layouts], self)
        return Encoded(layouts, self._tap.collect(modality, call, layouts, record), self)

    @torch.no_grad()
    def tokens(self, image: Located, prefill: Reducing) -> VisualTokens:
        """All that a method may look at, for one image of a prefill.

        Raises:
            UnsupportedCallError: it needs the instruction of a prompt that has none.
        """
        embeds = prefill.embeds
        features = embeds[image.row, image.columns.to(embeds.device)]
        pieces = [prefill.encoded[modality].signals[number] for modality, number in image.pieces]
        names = self._needs & pieces[0].keys()
        fields = {name: _join([piece[name] for piece in pieces], embeds) for name in names}
        if self._needs & {"text", "relevance"}:
            columns, words = self._words(image.row, prefill)
            if "relevance" in self._needs:
                looked = fields["relevance"]
                text = self._text_tower.read(self._instruction.text(words))
                fields["relevance"] = looked @ text.to(looked.device)
            if "text" in self._needs:
                fields["text"] = embeds[image.row, torch.tensor(columns, device=embeds.device)]
        return VisualTokens(features, image.layout.grid, index=image.ordinal, **fields)

    def _words(self, row: int, prefill: Reducing) -> tuple[list[int], list[int]]:
        """Columns and ids of the instruction of a prompt."""
        line = prefill.ids[row, : prefill.prompt_end].tolist()
        places = list(range(len(line)))
        if prefill.valid is not None:
            places = prefill.valid[row, : prefill.prompt_end].nonzero()[:, 0].tolist()
        ids = [line[place] for place in places]
        tokens = self._family.placeholders(self._model).values()
        pictures = [column for column, token in enumerate(ids) if token in tokens]
        columns = self._instruction.columns(ids, pictures)
        if not columns:
            raise UnsupportedCallError(
                f"{self._name} needs the question, but prompt {row} has no words beside its images"
            )
        return [places[column] for column in columns], [ids[column] for column in columns]


def part_of(tokens: VisualTokens, grid: Grid, start: int, part: int) -> VisualTokens:
    """The tokens of one of several grids of an image, which begins with token `start`."""
    own = slice(start, start + len(grid))
    received = tokens.encoder_attention
    return replace(
        tokens,
        features=tokens.features[own],
        grid=grid,
        part=part,
        encoder_attention=received and {layer: values[own] for layer, values in received.items()},
        cls_attention=None if tokens.cls_attention is None else tokens.cls_attention[own],
        keys=None if tokens.keys is None else tokens.keys[own],
        relevance=None if tokens.relevance is None else tokens.relevance[own],
    )


def _join(pieces: list[Any], like: Tensor) -> Any:
    """One field of the pieces of an image, on the device of `like`."""
    if isinstance(pieces[0], dict):
        return {layer: _join([piece[layer] for piece in pieces], like) for layer in pieces[0]}
    return torch.cat(pieces).to(like.device)


def _named_tokens(model: nn.Module, family: Family) -> set[int]:
    """Ids that the configuration gives a name: begin, end, padding, picture marks."""
    found = set(family.placeholders(model).values())
    config: Any = model.config
    for each in (config, config.get_text_config(), getattr(model, "generation_config", None)):
        for name, value in vars(each).items() if each is not None else ():
            if name.endswith(("token_id", "token_index")):
                values = value if isinstance(value, list) else [value]
                found |= {number for number in values if number is not None}
    return found
