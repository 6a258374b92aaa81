"""Features of pictures that are encoded once and given to several calls of `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.families.parts import ModelParts


class KeptFeatures:
    """What the encoder makes of the pictures and clips of a prompt.

    They belong to the compression that is on the model, which knows their signals.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Run the encoder.

        Args:
            model: compressed or not.
            inputs: of `prepare`; every later prompt holds the same pictures.
        """
        parts = ModelParts.of(model)
        self._outputs: dict[str, Any] = {}
        self._consumed: set[str] = set()
        for modality, name in parts.family.feature_calls.items():
            call = getattr(parts.base, name)
            given = {n: inputs[n] for n in inspect.signature(call).parameters if n in inputs}
            if any(n.startswith(("pixel_values", "image_patches")) for n in given):
                with torch.inference_mode():
                    self._outputs[modality] = call(**given, return_dict=True)
                self._consumed |= {n for n in given if n.startswith(("pixel", "image_patches"))}
        engine = engine_of(model)
        self.notes: list[str] = [] if engine is None else list(engine.trace.notes)
        """What a report would have said of encoding them; later calls encode nothing."""

    def instead_of_pixels(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of `generate` with these features in the place of the pixels."""
        rest = {name: value for name, value in inputs.items() if name not in self._consumed}
        return {**rest, "mm_encoder_outputs": dict(self._outputs)}
