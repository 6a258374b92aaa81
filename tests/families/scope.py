"""Which model types the matrix covers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import transformers
from shrink import CLASSES
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.patches.families.table import BROKEN, CLIPS, TESTED, row_of

DOZEN = (
    "llava",
    "qwen3_vl",
    "gemma3",
    "qwen3_5",
    "gemma4",
    "glm46v",
    "qwen3_omni_moe_thinker",
    "lfm2_vl",
    "paligemma",
    "mistral_large4",
    "deepseek_ocr2",
    "molmo2",
)
"""Types of the default tier, one for each way of doing things."""

_DISTANCES = "its decoder computes distances once, from the tokens that it is given"
VOID: dict[tuple[str, str], str] = {
    ("ernie4_5_vl_moe", "cached"): "without a cache, its generate() does not let token types grow",
    ("inkling2", "staged"): _DISTANCES,
    ("inkling2_loop", "staged"): _DISTANCES,
    ("qwen4_exp", "masked"): "it embeds n-grams, so a token changes its neighbours",
}
"""(type, law) that its bare model does not keep, and why."""

TOLERANCES = {"hunyuan_vl": 1e-3}
"""Where batches of the bare model are as far as that from their members."""
NO_SDPA = {"hy_v4_vl", "inkling2", "inkling2_loop"}
"""Their own classes say so: biases and sinks in their attention."""
ELSEWHERE = {"llava_next", "llava_next_video", "llava_onevision"}
"""Their separators are known, so tests/patches/test_laws.py has oracles of their own for them."""
TESTED_HERE = [name for name in CLASSES if name in TESTED and name not in ELSEWHERE]
CUTS = {name for name in TESTED_HERE if row_of(name).no_cuts is None}
CLIPS_HERE = [name for name in CLASSES if name in CLIPS and name not in FAMILIES.names()]
"""Those with an adapter of their own have their clips in tests/patches."""
DESCRIBED = [name for name in CLASSES if row_of(name).like is not None]
"""Those whose vision side the table describes."""
COUNTED = [name for name in DESCRIBED if row_of(name).no_costs is None]
"""Those of them whose FLOPs are known."""
PIXELS = [name for name in DESCRIBED if row_of(name).pixels]
"""Those of them whose pixels methods can work on."""


@contextmanager
def mended(model_type: str) -> Iterator[None]:
    """What transformers forgot in a type that its release broke, as a later one has it."""
    with pytest.MonkeyPatch.context() as patch:
        if (model_type, transformers.__version__) in BROKEN:
            # Llama 4 hands on an attribute that its decoder's output does not have.
            patch.setattr(MoeCausalLMOutputWithPast, "image_outputs", None, raising=False)
        yield
