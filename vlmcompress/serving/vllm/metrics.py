"""Counters beside vLLM's own, at the server's /metrics."""

from __future__ import annotations

from functools import cache
from typing import Any

from vlmcompress.serving.counts import ItemPlan, pipeline_of


@cache
def _counter(name: str, text: str) -> Any:
    from prometheus_client import Counter

    return Counter(f"vlmcompress:visual_tokens_{name}", text, labelnames=["modality", "method"])


def count(modality: str, plan: ItemPlan) -> None:
    """Note an image or clip that was processed; those in vLLM's processor cache are not again."""
    # The name alone: requests could give any number of options.
    labels = {"modality": modality, "method": pipeline_of(plan.method).name}
    given = _counter("given", "Visual tokens of images and clips before pruning.")
    kept = _counter("kept", "Visual tokens of the same that enter the decoder.")
    given.labels(**labels).inc(plan.given - len(plan.texts))
    kept.labels(**labels).inc(plan.keep - len(plan.texts))
