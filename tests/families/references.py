"""What a shortened forward is compared with: see `vlmcompress.laws.references`."""

from __future__ import annotations

from typing import Any

from model_case import Case, Inputs
from torch import Tensor

from vlmcompress.laws import references


def kept_columns(case: Case, report: Any, inputs: Inputs, layer: int) -> Tensor:
    """[B, L] bool: what of the prompts enters a layer."""
    present = inputs["attention_mask"].bool().clone()
    columns = [(line == case.token).nonzero()[:, 0] for line in inputs["input_ids"]]
    for image in report.images:
        mine, columns[image.row] = columns[image.row].tensor_split([image.before])
        kept = image.kept
        for cut in sorted(image.cuts):
            kept = image.cuts[cut] if cut <= layer else kept
        present[image.row, mine] = False
        present[image.row, mine[kept]] = True
    return present


def masked(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of each prompt."""
    keep = [kept_columns(case, report, inputs, layer) for layer in range(case.depth)]
    return references.masked(case.parts, lambda: case.logits(inputs)[:, -1], keep)


def staged(case: Case, report: Any, inputs: Inputs) -> Tensor:
    """Logits of the last token of a single prompt."""
    keep = [kept_columns(case, report, inputs, layer) for layer in range(case.depth)]
    return references.staged(case.parts, lambda: case.logits(inputs, use_cache=False)[:, -1], keep)
