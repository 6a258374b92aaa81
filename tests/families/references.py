"""What a shortened forward is compared with: see `vlmcompress.laws.references`.

And `shortened`, for decoders that know no positions and count distances by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from by_hand import Place, left, separators
from model_case import Case, Inputs
from torch import Tensor

from vlmcompress.laws import references


def spans(case: Case, report: Any, inputs: Inputs) -> list[Tensor]:
    """Columns of the placeholders of each picture, separators among them."""
    found: list[Tensor] = []
    for row, line in enumerate(inputs["input_ids"]):
        columns = (line == case.token).nonzero()[:, 0]
        several = sum(image.row == row for image in report.images) > 1
        found += columns.split(case.sizes) if several else [columns]
    return found


def ends_of(case: Case, image: Any, inputs: Inputs, placeholders: int) -> list[Place]:
    """The separators among the placeholders of a picture, by hand."""
    grid = next((v[image.index] for n, v in inputs.items() if n.endswith("grid_thw")), None)
    ends = separators(case.model_type, placeholders, grid)
    assert image.before == placeholders - len(ends)
    return ends


def kept_columns(case: Case, report: Any, inputs: Inputs, layer: int) -> Tensor:
    """[B, L] bool: what of the prompts enters a layer."""
    present = inputs["attention_mask"].bool().clone()
    for image, columns in zip(report.images, spans(case, report, inputs), strict=True):
        kept = image.kept
        for cut in sorted(image.cuts):
            kept = image.cuts[cut] if cut <= layer else kept
        ends = ends_of(case, image, inputs, len(columns))
        present[image.row, columns] = left(len(columns), ends, kept)
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
