"""The model: the plan of each image carried out between projector and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.multimodal.inputs import PlaceholderRange

from vlmcompress.errors import VLMCompressError
from vlmcompress.serving.counts import ItemPlan
from vlmcompress.serving.keeping import chosen, evenly, left
from vlmcompress.serving.settings import Settings
from vlmcompress.serving.vllm import positions
from vlmcompress.serving.vllm.compat import open_gate
from vlmcompress.serving.vllm.family import Family
from vlmcompress.serving.vllm.processor import FIELD, plans_in
from vlmcompress.serving.vllm.signals import TowerTaps

_log = init_logger("vllm.plugins.vlmcompress")


class Pruned:
    """Mixed into a model of vLLM, before its class."""

    supports_multimodal_pruning: ClassVar[bool] = True
    family: Family
    language_model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model_config = vllm_config.model_config
        self._hf_config = model_config.hf_config
        self._width = model_config.get_inputs_embeds_size()
        self._own_axes = hasattr(super(), "get_mrope_input_positions")
        keep = Settings.of_server(self._hf_config).positions == "keep"
        self.carries_positions = keep and model_config.uses_mrope
        if self.carries_positions:
            open_gate(model_config.multimodal_config)
        self._taps = TowerTaps(self, self.family, self._hf_config)  # type: ignore[arg-type]

    # ---- features ----

    @torch.no_grad()
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As vLLM's model, with the features that the plans leave; one call has one modality."""
        if FIELD not in kwargs:  # a modality that is not pruned
            whole = super().embed_multimodal(**kwargs)  # type: ignore[misc]
            if not self.carries_positions:
                return whole
            return [nn.functional.pad(one, (0, positions.COLUMNS)) for one in whole]
        plans = plans_in(kwargs.pop(FIELD))
        modality = "video" if any("video" in name for name in kwargs) else "image"
        asked = [self._asked(plan) for plan in plans]
        layers = frozenset(n for one in asked for numbers in one.values() for n in numbers)
        with self._taps.recording(layers):
            found = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        # LLaVA-OneVision gives clips of several lengths as [1, N, D].
        each = zip((one.flatten(0, -2) for one in found), plans, strict=True)
        found = [self._with_texts(features, plan) for features, plan in each]
        signals = self._signals(modality, kwargs, plans, asked)
        items = _items(kwargs, len(found))
        return [
            self._pruned(modality, *one) for one in zip(found, plans, items, signals, strict=True)
        ]

    def _with_texts(self, features: Tensor, plan: ItemPlan) -> Tensor:
        """[given, C]: with the embedded text between frames in its places."""
        if not plan.texts:
            return features
        visual = plan.layout.visual.to(features.device)
        ids = torch.tensor(plan.texts, device=features.device)
        language = self.get_language_model()  # type: ignore[attr-defined]
        rows = features.new_zeros(plan.given, features.shape[1])  # DeepStack adds nothing to text
        rows[visual] = features
        rows[~visual, : self._width] = language.embed_input_ids(ids).to(rows)
        return rows

    def _asked(self, plan: ItemPlan) -> dict[str, list[int]]:
        if plan.keep >= plan.given:
            return {}
        wanted = self.family.wanted(plan.method, self._hf_config)
        return self._taps.layers_of(plan.method, wanted)

    def _signals(
        self,
        modality: str,
        kwargs: Mapping[str, Any],
        plans: Sequence[ItemPlan],
        asked: Sequence[dict[str, list[int]]],
    ) -> Sequence[dict[str, Any]]:
        union: dict[str, list[int]] = {}
        for one in asked:
            for name, numbers in one.items():
                union[name] = sorted({*union.get(name, []), *numbers})
        layouts = [plan.encoded for plan in plans]
        found = self._taps.collect(union, modality, kwargs, layouts)
        return [_only(mine, one) for mine, one in zip(found, asked, strict=True)]

    def _pruned(
        self, modality: str, features: Tensor, plan: ItemPlan, item: Any, signals: dict[str, Any]
    ) -> Tensor:
        features, kept = self._kept(features, plan, signals)
        if not self.carries_positions:
            return features
        relative = self._relative(modality, item, plan).to(kept.device)[:, kept]
        return torch.cat([features, positions.columns_of(relative, features)], dim=1)

    def _kept(
        self, features: Tensor, plan: ItemPlan, signals: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The features that are left, and their places among those of the image."""
        device = features.device
        if plan.keep >= plan.given:
            return features, torch.arange(plan.given, device=device)
        try:
            found = self._chosen(features[plan.layout.visual.to(device)], plan, signals)
        except VLMCompressError as error:
            # As many must come back as the prompt has places for, or the whole server ends.
            _log.error("vlmcompress: %s; evenly spaced tokens are kept instead", error)
            found = evenly(plan, device), None
        kept, merged = found
        agreed = None if merged is None else _agreed(merged)
        return left(plan, features, _agreed(kept), agreed)

    def _chosen(
        self, features: Tensor, plan: ItemPlan, signals: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """As `keeping.chosen`, with what the method needs beside the features."""
        wanted = self.family.wanted(plan.method, self._hf_config)
        fields = dict(signals)
        language = self.get_language_model()  # type: ignore[attr-defined]
        if "text" in wanted:
            if not plan.words:  # pictures alone, by which vLLM measures its memory
                return evenly(plan, features.device), None
            ids = torch.tensor(plan.words, device=features.device)
            fields["text"] = language.embed_input_ids(ids)
        if "vocabulary" in wanted:
            vocabulary, group = language.model.embed_tokens, get_tp_group()
            weight = vocabulary.weight
            if group.world_size > 1:  # each rank has some of the rows
                weight = group.all_gather(weight, dim=0)
            fields["vocabulary"] = weight[: vocabulary.org_vocab_size]
        return chosen(plan, features, self._width, fields)

    # ---- positions ----

    def _full_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        if self._own_axes:
            return super().get_mrope_input_positions(tokens, features)  # type: ignore[misc,no-any-return]
        return positions.one_axis(tokens, features)

    def _relative(self, modality: str, item: Any, plan: ItemPlan) -> Tensor:
        """[3, given] positions of an image by itself."""
        place = PlaceholderRange(0, plan.given)
        alone = SimpleNamespace(data=item, modality=modality, mm_position=place)
        ids = plan.ids(self.family.placeholders(self._hf_config)[modality])
        return self._full_positions(ids, [alone])[0]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Those of the unpruned prompt; see `positions`."""
        if not self.carries_positions:
            return self._full_positions(input_tokens, mm_features)
        runs, whole_features, tokens, grown = [], [], list(input_tokens), 0
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            found, place = _run(feature), feature.mm_position
            if found is None:
                place = replace(place, offset=place.offset + grown)
            else:
                run, plan = found
                runs.append(run)
                place = PlaceholderRange(run.start + grown, run.given)
                tokens[place.offset : place.offset + run.kept] = plan.ids(input_tokens[run.start])
                grown += run.given - run.kept
            whole_features.append(
                SimpleNamespace(data=feature.data, modality=feature.modality, mm_position=place)
            )
        whole, delta = self._full_positions(tokens, whole_features)
        short, delta = positions.marked(whole, delta, runs, len(input_tokens))
        short.after_prompt = delta  # type: ignore[attr-defined]
        return short, delta

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Features without the columns of positions, and positions with these; see `positions`."""
        known = getattr(mrope_positions, "after_prompt", None)
        if not multimodal_embeddings and known is not None:
            return [], mrope_positions, known
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        places = self.family.placeholders(self._hf_config).values()
        marks = torch.tensor(sorted(places), device=ids.device)
        clean, found, delta = positions.settled(
            mrope_positions, multimodal_embeddings, torch.isin(ids, marks), num_computed_tokens
        )
        if known is None:
            known = delta if delta is not None else int(found.max()) + 1 - found.shape[1]
        return clean, found, known

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """vLLM's; a decoder of one axis gets one of three equal rows."""
        if self.carries_positions and not self._own_axes:
            positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, **kwargs: Any
    ) -> Tensor:
        """vLLM's, once it is sure that the runner took the columns of positions off."""
        for one in multimodal_embeddings or ():
            if self.carries_positions and one.shape[-1] % self._width == positions.COLUMNS:
                raise VLMCompressError(
                    "this runner of vLLM does not correct positions: serve with positions=renumber"
                )
        return super().embed_input_ids(input_ids, multimodal_embeddings, **kwargs)  # type: ignore[misc,no-any-return]

    def get_encoder_cudagraph_config(self) -> Any:
        """No graph of the encoder, which would go around `embed_multimodal`."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]


def _run(feature: Any) -> tuple[positions.Run, ItemPlan] | None:
    """Where the features of an image lie in a prompt, and its plan; None for what is not pruned."""
    if FIELD not in feature.data:
        return None
    place = feature.mm_position
    first = 0 if place.is_embed is None else int(place.is_embed.to(torch.int).argmax())
    (plan,) = plans_in([feature.data[FIELD].data])
    return positions.Run(place.offset + first, plan.keep, plan.given), plan


def _agreed(found: Tensor) -> Tensor:
    """What rank 0 chose: a difference in the last digit between ranks could choose others."""
    group = get_tp_group()
    if group.world_size == 1:
        return found
    agreed: Tensor = group.broadcast(found.contiguous(), src=0)
    return agreed


def _only(signals: dict[str, Any], layers: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Those that one method asked for, of all that were collected in a batch."""
    return {
        name: {n: signals[name][n] for n in numbers}
        if isinstance(signals[name], dict)
        else signals[name]
        for name, numbers in layers.items()
    }


def _items(kwargs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The small arguments of each image, as vLLM keeps them in a request."""
    named = {name: values for name, values in kwargs.items() if "grid" in name or "size" in name}
    return [
        {name: SimpleNamespace(data=torch.as_tensor(values[n])) for name, values in named.items()}
        for n in range(count)
    ]
