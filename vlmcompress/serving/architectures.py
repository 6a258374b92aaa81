"""Which models can be served with fewer visual tokens, and how a server is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmcompress.errors import UnsupportedModelError

KEY = "vlmcompress"
"""Of the settings: in `--hf-overrides` of a server and in `mm_processor_kwargs` of a request."""

SERVED: Mapping[str, str] = {
    "LlavaForConditionalGeneration": "LLaVA-1.5",
    "LlavaNextForConditionalGeneration": "LLaVA-NeXT",
    "LlavaOnevisionForConditionalGeneration": "LLaVA-OneVision",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2.5-VL",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL",
    "InternVLForConditionalGeneration": "InternVL",
}
"""Architecture, as checkpoints and vLLM name it -> what people call it."""


def pruned_name(architecture: str) -> str:
    """The name under which the pruning model stands beside vLLM's own."""
    return f"Vlmcompress{architecture}"


def hf_overrides(
    architectures: Sequence[str],
    method: str,
    budget: int | float | str | None = None,
    positions: str = "keep",
) -> dict[str, Any]:
    """What `vllm.LLM(hf_overrides=...)` or `vllm serve --hf-overrides` needs.

    Args:
        architectures: of the checkpoint, as its `config.json` lists them.
        method: a method spec; "full" prunes nothing but lets requests ask for a method.
        budget: as for `vlmcompress.compress`; not a time.
        positions: "keep" or "renumber".

    Raises:
        UnsupportedModelError: none of the architectures is served.
    """
    found = next((name for name in architectures if name in SERVED), None)
    if found is None:
        raise UnsupportedModelError(
            f"{', '.join(architectures) or 'a model without architectures'} cannot be served with "
            f"fewer visual tokens; possible: {', '.join(SERVED)}"
        )
    settings = {"method": method, "budget": budget, "positions": positions}
    given = {name: value for name, value in settings.items() if value is not None}
    return {"architectures": [pruned_name(found)], KEY: given}
