"""What the plug-in needs to know of a model family of vLLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from vlmcompress.patches.families import family as patched
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.serving.counts import check_stage, plan, signals_of
from vlmcompress.serving.settings import Settings
from vlmcompress.tokens import Layout

_NOT_HERE = frozenset({"relevance", "projection", "question_logits"})
"""Signals that take a text tower, a projector that can be run by itself, or a decoder layer."""


class Family:
    """One model family.

    Grids and what signals mean are those of the adapter in `vlmcompress.patches.families`; here is
    only where vLLM keeps things.
    """

    adapter: str
    """Name of that adapter."""
    modalities: tuple[str, ...] = ("image",)
    """What is pruned."""
    renumbers: bool = True
    """Whether positions are one number per token."""
    tower: str = "vision_tower.vision_model.encoder.layers"
    """The layers of the vision tower, up to the one that gives the features."""
    attention: str = "self_attn"
    """The attention module in such a layer."""
    projection: str | None = None
    """The projection to queries, keys and values in it, where keys are rotated afterwards."""
    renames: ClassVar[Mapping[str, str]] = {}
    """Pattern -> replacement, for names of weights that vLLM does not know."""

    @property
    def adapted(self) -> patched.Family:
        """The adapter."""
        return FAMILIES.get(self.adapter)()

    @property
    def encoder(self) -> Encoder:
        """Its vision side."""
        return self.adapted.encoder

    def gives(self, config: Any) -> frozenset[str]:
        """The signals of a model."""
        return self.encoder.gives(shown(config)) - _NOT_HERE

    def wanted(self, method: str, config: Any) -> frozenset[str]:
        """The signals that a method needs of a model.

        Raises:
            UnsupportedModelError: the model does not give one.
        """
        return signals_of(method, self.gives(config), f"this {self.adapter} model")

    def check(self, config: Any, settings: Settings) -> None:
        """Refuse settings that no image of this model can be pruned with.

        Raises:
            VLMCompressError: names what is wrong.
        """
        self.check_config(config)
        check_stage(settings.method, self.adapter, self.adapted.stages)
        self.wanted(settings.method, config)
        grid = self.adapted.fixed_grid(shown(config))
        if grid is not None:
            plan(settings, Layout.of(grid))

    def check_config(self, config: Any) -> None:
        """Refuse a model of the family that is built otherwise.

        Raises:
            UnsupportedModelError: it is.
        """

    def placeholders(self, config: Any) -> set[int]:
        """Token ids that stand for visual tokens in a prompt."""
        return set(self.adapted.placeholders(shown(config)).values())

    def layout(self, config: Any, modality: str, item: Mapping[str, Any], count: int) -> Layout:
        """How the features of one image or clip lie.

        Args:
            config: of the model.
            modality: "image" or "video".
            item: what vLLM's processor made of it, by name.
            count: of its features.
        """
        grid = item.get(f"{modality}_grid_thw")
        if grid is None:
            return Layout.of(patched.square(count))
        call = {f"{modality}_grid_thw": grid.reshape(1, 3)}
        return self.adapted.layouts(shown(config), modality, [], call)[0]

    def mapper(self, base: Any) -> dict[str, Any]:
        """The table of weight names of vLLM's class, with `renames`."""
        if not self.renames:
            return {}
        from vllm.model_executor.models.utils import WeightsMapper

        patterns = {re.compile(old): new for old, new in self.renames.items()}
        more = WeightsMapper(orig_to_new_regex=patterns)
        return {"hf_to_vllm_mapper": base.hf_to_vllm_mapper | more}


def shown(config: Any) -> Any:
    """What adapters, which read nothing but the configuration here, take for a model."""
    return SimpleNamespace(config=config)
