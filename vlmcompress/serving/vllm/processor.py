"""The front end: fewer placeholders in the prompt, and a plan beside the pixels of each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails

from vlmcompress.errors import UnsupportedCallError, VLMCompressError
from vlmcompress.patches.signals.instruction import Instruction, named_tokens
from vlmcompress.serving.architectures import KEY
from vlmcompress.serving.counts import ItemPlan, plan
from vlmcompress.serving.settings import Settings
from vlmcompress.serving.vllm import metrics
from vlmcompress.serving.vllm.family import Family, shown

FIELD = "vlmcompress_plan"
"""Of the arguments of `embed_multimodal`: an `ItemPlan` as bytes, for each image."""


def pruning(factory: Any, family: Family) -> Any:
    """A processor factory around that of vLLM's model."""

    def build(info: Any, dummy_inputs: Any, **kwargs: Any) -> Any:
        own = factory(info, dummy_inputs, **kwargs)
        made = type(f"Pruning{type(own).__name__}", (Pruning, type(own)), {"family": family})
        info.get_mm_max_tokens_per_item = partial(_largest, own)
        return made(info, dummy_inputs, **kwargs)

    return build


def _largest(own: Any, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
    """Tokens of the largest image without pruning: what the vision tower computes, and what a
    request may ask for. Else vLLM would measure pruned dummies, refuse larger requests, and put
    more images into one run of the tower than fit."""
    known = type(own.info).get_mm_max_tokens_per_item(own.info, seq_len, mm_counts)
    if known is not None:
        return dict(known)
    places = own.get_dummy_mm_inputs(mm_counts)["mm_placeholders"]
    return {name: sum(one.get_num_embeds() for one in found) for name, found in places.items()}


class Pruning:
    """Mixed into the processor of a model, before its class.

    Whatever cannot be served raises here, where one request fails. An error in the engine would
    end the server.
    """

    family: Family
    info: Any
    _instruction: Instruction | None = None
    _measuring = False

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Put the settings among the keyword arguments of the processor.

        vLLM hashes these together with the pixels, so that no KV blocks, features or processed
        pixels of other settings are taken for those of this request.
        """
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        config = self.info.get_hf_config()
        settings = Settings.of_server(config).for_request(kwargs.pop(KEY, None))
        words: tuple[int, ...] = ()
        self.family.check(config, settings)
        if "text" in self.family.wanted(settings.method, config) and not self._measuring:
            words = self._question(inputs.prompt)
            if not words and any(map(len, inputs.mm_data_items.values())):
                raise UnsupportedCallError(
                    f"{settings.method} needs the question, but the prompt has no words beside its "
                    "images"
                )
        kwargs[KEY] = settings.identity(words)
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)  # type: ignore[misc]

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """With pictures, but without a question."""
        with self._measures():
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _measures(self) -> Iterator[None]:
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False

    def _question(self, prompt: list[int]) -> tuple[int, ...]:
        """Ids of the user's words, as `vlmcompress.compress(..., processor=...)` finds them."""
        config = self.info.get_hf_config()
        pictures = self.family.placeholders(config)
        if self._instruction is None:
            named = named_tokens(shown(config), self.family.adapted)
            self._instruction = Instruction.of(self.info.get_hf_processor(), named)
        places = [place for place, token in enumerate(prompt) if token in pictures]
        return tuple(prompt[column] for column in self._instruction.columns(prompt, places))

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        given = {name: value for name, value in hf_kwargs.items() if name != KEY}
        return super()._apply_hf_processor_main(mm_items, given)  # type: ignore[misc]

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Any:
        """Fewer placeholders for each image that was not in vLLM's cache, and its plan."""
        updates = super()._get_mm_prompt_updates(  # type: ignore[misc]
            mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        )
        settings, words = Settings.of_identity(hf_processor_mm_kwargs[KEY])
        return {
            modality: [
                [self._shorter(one, settings, words, out_mm_kwargs[modality][n]) for one in item]
                for n, item in enumerate(items)
            ]
            if modality in self.family.modalities
            else items
            for modality, items in updates.items()
        }

    def _shorter(
        self, update: Any, settings: Settings, words: tuple[int, ...], item: dict[str, Any]
    ) -> Any:
        content = update.content
        visual = torch.ones(len(content.full), dtype=torch.bool)
        if content.is_embed is not None:
            visual = content.is_embed(content.full)
        given = {name: element.data for name, element in item.items()}
        layout = self.family.layout(
            self.info.get_hf_config(), update.modality, given, int(visual.sum())
        )
        found = plan(settings, layout, words)
        stay = _stay(visual, found)
        raw = torch.frombuffer(bytearray(found.dump()), dtype=torch.uint8)
        item[FIELD] = MultiModalFieldElem(raw, MultiModalBatchedField(keep_on_cpu=True))
        if not self._measuring:
            metrics.count(update.modality, found)
        full = [token for token, stays in zip(content.full, stay.tolist(), strict=True) if stays]
        short = PromptUpdateDetails(full, partial(_embedded, visual[stay]))
        return replace(update, content=short)


def _stay(visual: Tensor, found: ItemPlan) -> Tensor:
    """[L] bool: which tokens of the content stay; of the visual ones the first so many.

    Args:
        visual: [L] bool, the tokens that features take the place of.
        found: the plan of the image.

    Raises:
        VLMCompressError: the content does not fit the plan.
    """
    places = visual.nonzero()[:, 0]
    if len(places) != found.given or int(places[-1]) - int(places[0]) + 1 != len(places):
        raise VLMCompressError(
            f"an image of {len(places)} visual tokens that are not one run of {found.given} (as "
            "with pan and scan) cannot be served with fewer"
        )
    stay = torch.ones_like(visual)
    stay[places[found.keep :]] = False
    return stay


def _embedded(visual: Tensor, full: list[int]) -> Tensor:
    return visual


def plans_in(values: Any) -> list[ItemPlan]:
    """The plans of a batch: [n, bytes] where they are of one length, else n tensors."""
    return [ItemPlan.load(bytes(one.flatten().tolist())) for one in values]
