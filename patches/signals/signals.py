"""What a method wants to know beside the features: collected only where it says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.contracts.method import OF_THE_QUESTION, resolve
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import width
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import During
from vlmcompress.patches.sequence.placeholders import Located
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals import text_tower
from vlmcompress.patches.signals.availability import defined, given_by, vocabulary_of
from vlmcompress.patches.signals.instruction import Instruction, named_tokens
from vlmcompress.patches.signals.known_features import known_of
from vlmcompress.patches.signals.projector import join_projections
from vlmcompress.patches.signals.question_logits import SIGNAL, question_logits
from vlmcompress.patches.signals.text_tower import TextTower
from vlmcompress.patches.signals.tower_hooks import WHILE_ENCODING, Record, TowerHooks
from vlmcompress.tokens import Layout, Projection, VisualTokens


@dataclass(frozen=True)
class ChunkIds:
    """The token ids of the chunk that a prefill brings."""

    ids: Tensor
    """[B, L] int64, on the CPU."""
    unmasked: Tensor
    """[B, L] bool, on the CPU: no padding."""
    prompt_end: int
    """Column behind the prompt; what follows are answers so far."""


@dataclass(frozen=True)
class Encoded:
    """What one feature call gave: an entry per piece (image, clip or tile)."""

    layouts: Sequence[Layout]
    signals: Sequence[Mapping[str, Any]]
    """What `TowerHooks.collect` gave."""
    by: object
    """`Signals.mark` of who collected it."""
    survivors: Sequence[Survivors] | None = None
    """What a method before the projector left of each."""


class Signals:
    """Collects what the methods of a pipeline need from one model."""

    def __init__(
        self,
        parts: ModelParts,
        pipeline: Pipeline,
        processor: Any = None,
        tower: Any = None,
    ) -> None:
        """Find out what is needed and where it comes from.

        Args:
            parts: of the model.
            pipeline: the methods.
            processor: reads the prompts, for `text` and `relevance`; see `Instruction`.
            tower: text tower for `relevance`; see `text_tower.find`.

        Raises:
            VLMCompressError: the model does not give it, or it takes a processor or a text tower
                that is missing or unfit.
        """
        self._parts, self._name = parts, pipeline.name
        family = parts.family
        given = defined(pipeline, parts, given_by(family, parts.base))
        self.collected = self._resolved(pipeline, given)
        """The signals that are collected: what the methods need, as this model can give it."""
        found: TextTower | None = None
        if "relevance" in self.collected:
            found = self._find_text_tower(processor, tower, demanded="relevance" in pipeline.needs)
            if found is None:
                given -= {"relevance"}
                self.collected = self._resolved(pipeline, given)
        self.notes = self._notes(pipeline, processor)
        """What a report has to say of where they come from."""
        self._recording = During[Record]()
        self.mark = object()
        encoding = self.collected & WHILE_ENCODING
        self._tower = (
            TowerHooks(parts, pipeline, given, encoding, self._recording) if encoding else None
        )
        if self.collected & OF_THE_QUESTION:
            self._instruction = Instruction.of(processor, named_tokens(parts.model, family))
        if found is not None:
            assert self._tower is not None
            self._text_tower = self._tower.text_tower = found

    def _resolved(self, pipeline: Pipeline, given: frozenset[str]) -> frozenset[str]:
        collected, missing = resolve(pipeline.needs, given)
        if missing:
            raise UnsupportedModelError(
                f"{self._name} needs {', '.join(missing)}, which this "
                f"{self._parts.family.name} model does not give (it gives "
                f"{', '.join(sorted(given))})"
            )
        return collected

    def _notes(self, pipeline: Pipeline, processor: Any) -> list[str]:
        notes = []
        wanted = any("relevance" in need.split("|") for need in pipeline.needs)
        if wanted and "text" in self.collected:
            why = "no processor= was given" if processor is None else "no text tower was found"
            notes.append(
                f"{self._name} compared the image with the embedded words of the question, not in "
                f"CLIP's space: {why}"
            )
        if processor is None and self.collected & {"text", SIGNAL}:
            notes.append(
                "no processor= was given, so the question is all text after the last picture, "
                "words of the chat template among it"
            )
        return notes

    def _find_text_tower(self, processor: Any, tower: Any, demanded: bool) -> TextTower | None:
        """The text tower; None where there is none and a method can do without."""
        optional = not demanded and text_tower.chosen(tower) is None
        if processor is None:
            if optional:
                return None
            raise CompositionError(
                f"{self._name} compares images with the words of the prompt: "
                "give compress(..., processor=...)"
            )
        first = self._parts.towers[0]
        try:
            return text_tower.find(tower, first, width(first))
        except UnsupportedModelError:
            if optional:
                return None
            raise

    def hook(self, attached: Attachments) -> None:
        """Hook the layers that are needed, and no others."""
        if self._tower is not None:
            self._tower.hook(attached)

    @contextmanager
    def recording(self) -> Iterator[Record | None]:
        """While a feature call runs. Gives None inside another one, whose record goes on."""
        if self._recording.value is not None:
            yield None
            return
        record = Record(list)
        with self._recording.holding(record):
            yield record

    @torch.no_grad()
    def settle(self, record: Record) -> None:
        """Keep of a feature call so far what is wanted, and none of its activations."""
        if self._tower is not None:
            self._tower.settle(record)

    @torch.no_grad()
    def encoded(
        self, modality: str, call: Mapping[str, Any], output: Any, record: Record
    ) -> Encoded | None:
        """What a feature call gave; None if it gave no features.

        Args:
            modality: "image" or "video".
            call: its arguments by name.
            output: what it returned.
            record: of `recording`.
        """
        features = self._parts.family.features(output)
        if features is None:
            return None
        layouts = self._layouts(modality, features, call)
        return self._encoded(modality, call, layouts, record)

    def handed_over(
        self, call: Mapping[str, Any], noted: Mapping[str, Encoded]
    ) -> dict[str, Encoded]:
        """Modality -> what was encoded before this forward of the base model.

        Args:
            call: arguments of the forward by name.
            noted: what feature calls of the running `generate` gave, which may have copied or
                repeated the tensors since.

        Raises:
            UnsupportedCallError: it was encoded without collecting what is needed.
        """
        found = {}
        for modality, output in (call.get("mm_encoder_outputs") or {}).items():
            features = self._parts.family.features(output)
            if features is None:
                continue
            known: Encoded | None = known_of(features) or noted.get(modality)
            if self._tower is not None and (known is None or known.by is not self.mark):
                raise UnsupportedCallError(
                    f"{self._name} needs {', '.join(sorted(self.collected & WHILE_ENCODING))}: "
                    f"encode the {modality} after compress(), or give its pixels"
                )
            if known is None:
                layouts = self._layouts(modality, features, call)
                known = self._encoded(modality, call, layouts, Record(list))
            found[modality] = known
        return found

    def _layouts(self, modality: str, features: Any, call: Mapping[str, Any]) -> Sequence[Layout]:
        return self._parts.family.layouts(self._parts.model, modality, features, call)

    def _encoded(
        self, modality: str, call: Mapping[str, Any], layouts: Sequence[Layout], record: Record
    ) -> Encoded:
        if self._tower is None:
            return Encoded(layouts, [{} for _ in layouts], self.mark)
        return Encoded(layouts, self._tower.collect(modality, call, layouts, record), self.mark)

    @torch.no_grad()
    def tokens(
        self,
        image: Located,
        encoded: Mapping[str, Encoded],
        embeds: Tensor,
        chunk: ChunkIds,
    ) -> VisualTokens:
        """All that a method may look at, for one image of a prefill.

        Args:
            image: where it lies.
            encoded: modality -> what the feature calls of the prefill gave.
            embeds: [B, L, D] that enter the decoder.
            chunk: the token ids of the same.

        Raises:
            UnsupportedCallError: it needs the instruction of a prompt that has none.
        """
        features = embeds[image.row, image.columns.to(embeds.device)]
        pieces = [encoded[modality].signals[number] for modality, number in image.pieces]
        names = self.collected & pieces[0].keys()
        fields = {name: _join([piece[name] for piece in pieces], embeds) for name in names}
        if "vocabulary" in self.collected:
            fields["vocabulary"] = vocabulary_of(self._parts.base)
        if self.collected & OF_THE_QUESTION:
            columns, words = self._words(image.row, chunk)
            if "relevance" in self.collected:
                looked = fields["relevance"]
                text = self._text_tower.read(self._instruction.text(words))
                with torch.autocast(looked.device.type, enabled=False):
                    fields["relevance"] = looked.float() @ text.to(looked.device, torch.float32)
            asked = embeds[image.row, torch.tensor(columns, device=embeds.device)]
            if "text" in self.collected:
                fields["text"] = asked
            if SIGNAL in self.collected:
                fields[SIGNAL] = question_logits(self._parts.layers[0], asked, features)
        return VisualTokens(features, image.layout.grid, index=image.ordinal, **fields)

    def _words(self, row: int, chunk: ChunkIds) -> tuple[list[int], list[int]]:
        """Columns and ids of the instruction of a prompt."""
        line = chunk.ids[row, : chunk.prompt_end].tolist()
        places = chunk.unmasked[row, : chunk.prompt_end].nonzero()[:, 0].tolist()
        ids = [line[place] for place in places]
        tokens = self._parts.family.placeholders(self._parts.model).values()
        pictures = [column for column, token in enumerate(ids) if token in tokens]
        columns = self._instruction.columns(ids, pictures)
        if not columns:
            raise UnsupportedCallError(
                f"{self._name} needs the question, but prompt {row} has no words beside its images"
            )
        return [places[column] for column in columns], [ids[column] for column in columns]


def _join(pieces: list[Any], like: Tensor) -> Any:
    """One field of the pieces of an image, on the device of `like`."""
    if isinstance(pieces[0], dict):
        return {layer: _join([piece[layer] for piece in pieces], like) for layer in pieces[0]}
    if isinstance(pieces[0], Projection):
        return pieces[0] if len(pieces) == 1 else join_projections(pieces)
    return torch.cat(pieces).to(like.device)
