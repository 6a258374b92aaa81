"""Which model types the matrix covers."""

from __future__ import annotations

from shrink import CLASSES

from vlmcompress.patches.families.table import TESTED, row_of

DOZEN = (
    "llava",
    "qwen3_vl",
    "gemma3",
    "qwen3_5",
    "gemma4_unified",
    "minicpmv4_6",
    "glm46v",
    "qwen3_omni_moe_thinker",
    "lfm2_vl",
    "paligemma",
    "deepseek_ocr2",
    "molmo2",
)
"""Types of the default tier, one for each way of doing things."""

VOID: dict[tuple[str, str], str] = {
    ("ernie4_5_vl_moe", "cached"): "without a cache, its generate() does not let token types grow",
    ("qwen4_exp", "masked"): "it embeds n-grams, so a token changes its neighbours",
}
"""(type, law) that its bare model does not keep, and why."""

TOLERANCES = {"hunyuan_vl": 1e-3}
"""Where batches of the bare model are as far as that from their members."""
ELSEWHERE = {"llava_next", "llava_next_video", "llava_onevision"}
"""Their separators are known, so tests/patches/test_laws.py has oracles of their own for them."""
NOT_YET = {
    "dots3_note",
    "ernie4_5_vl_moe",
    "gemma3n",
    "gemma4",
    "granite4_vision",
    "inkling2",
    "inkling2_loop",
    "inkling_mm_model",
    "lfm3_vl",
    "llama4",
    "qwen4_exp",
}
"""Types that the engine has to learn something for."""
TESTED_HERE = [name for name in CLASSES if name in TESTED and name not in ELSEWHERE]
CUTS = {name for name in TESTED_HERE if row_of(name).no_cuts is None}
