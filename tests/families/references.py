"""What a shortened forward is compared with: see `vlmcompress.laws.references`.

And `shortened`, for decoders that know no positions and count distances by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from by_hand import left, separators
from model_case import Case, Inputs
from torch import Tensor

from vlmcompress.laws import references


def kept_columns(case: Case, report: Any, inputs: Inputs, layer: int) -> Tensor:
    """[B, L] bool: what of the prompts enters a layer."""
    present = inputs["attention_mask"].bool().clone()
    columns = [(line == case.token).nonzero()[:, 0] for line in inputs["input_ids"]]
    for image in report.images:
        grid = next((v[image.row] for n, v in inputs.items() if n.endswith("grid_thw")), None)
        whole = len(columns[image.row])  # one picture a prompt
        ends = separators(case.model_type, whole, grid)
        assert image.before == whole - len(ends)
        kept = image.kept
        for cut in sorted(image.cuts):
            kept = image.cuts[cut] if cut <= layer else kept
        present[image.row, columns[image.row]] = left(whole, ends, kept)
    return present


def masked(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of each prompt."""
    keep = [kept_columns(case, report, inputs, layer) for layer in range(case.depth)]
    return references.masked(case.parts, lambda: case.logits(inputs)[:, -1], keep)


def staged(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of a single prompt."""
    keep = [kept_columns(case, report, inputs, layer) for layer in range(case.depth)]
    return references.staged(case.parts, lambda: case.logits(inputs, use_cache=False)[:, -1], keep)


def shortened(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """The same where only the projector stage drops, and distances are between kept tokens."""
    left = kept_columns(case, report, inputs, 0)[0].nonzero()[:, 0]
    size = inputs["input_ids"].shape

    def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        def cut(value: Any) -> Any:
            return value[:, left] if torch.is_tensor(value) and value.shape[:2] == size else value

        return args, {name: cut(value) for name, value in kwargs.items()}

    handle = case.parts.lm.register_forward_pre_hook(drop, with_kwargs=True)
    try:
        return case.logits(inputs, use_cache=False)[:, -1]
    finally:
        handle.remove()
