"""The results that are committed: one folder for each built-in model, and what they are read by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import VLMCompressError

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "eval"
"""Holds a folder for each of `FAMILIES` and `AT_COUNTS`, as `vlmcompress eval --out` writes it."""
RESULTS = "results.json"
INSIDE = FOLDER / "inside-the-tower"
"""The same of pipelines that drop inside the tower, and what they are compared with."""
RESTORE = FOLDER / "restore"
"""The same of methods with and without RESTORE around them."""
FAMILIES = {"tiny-llava": "llava", "tiny-qwen": "qwen2_5_vl"}
"""Model -> its family; measured at shares of the tokens, from which "auto" is chosen."""
AT_COUNTS = {"small-llava": "llava"}
"""The same of what is measured at the counts of tokens that papers use."""


def results(model: str, folder: Path | None = None) -> dict[str, Any]:
    """The content of the results.json of a model, see `vlmcompress.eval.results.summary.summarise`.

    Args:
        model: one of `FAMILIES` or `AT_COUNTS`.
        folder: `FOLDER` by default, `INSIDE` or `RESTORE`.

    Raises:
        VLMCompressError: there is no such file, or it is no JSON.
    """
    path = (folder or FOLDER) / model / RESULTS
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VLMCompressError(
            f"no results of {model!r} are committed, only a checkout has them: no {str(path)!r}"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise VLMCompressError(f"cannot read {str(path)!r}: {error}") from error
    return found


def all_results(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Model -> content of its results.json; see `results`."""
    return {model: results(model, folder) for model in FAMILIES}


def at_counts() -> dict[str, dict[str, Any]]:
    """The same of `AT_COUNTS`."""
    return {model: results(model) for model in AT_COUNTS}


def scores_of(row: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """[n] scores of a case, of 0 to 1, question by question."""
    return np.array([float(score) for score in row["scores"]], dtype=np.float64)
