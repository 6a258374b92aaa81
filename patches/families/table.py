"""What cannot be read from a model: a line for each type that is an exception, and what was tested.

A type that needs nothing has no line in `ROWS`. Its name in `TESTED` says that `tests/families`
proves it on the newest transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.methods.contracts.method import Stage
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.patches.families.vision_encoders import Gemma3Encoder, InternVLEncoder
from vlmcompress.patches.families.vision_encoders_packed import (
    DeepEncoder,
    NativeEncoder,
    PackedEncoder,
    PaddedEncoder,
    PairedEncoder,
    RasterEncoder,
    WindowEncoder,
)
from vlmcompress.patches.families.vision_encoders_tiles import (
    BlockEncoder,
    PlacedEncoder,
    PooledEncoder,
)
from vlmcompress.registry import PlugIns


@dataclass(frozen=True)
class Row:
    """The exceptions of one model type."""

    no_cuts: str | None = None
    """Why its decoder layers cannot hold different tokens; None where they can."""
    separators: str = ""
    """What stands among the features beside tokens of the picture, in words of
    `vlmcompress.patches.families.separators.WORDS`: "row" for one behind each row of tokens."""
    like: Encoder | None = None
    """The kind of its vision side; None where nothing is known of it."""
    pixels: bool = False
    """Whether its processor cuts pixels as those of Qwen do, so that methods can work on them, and
    on patches between the layers of its tower."""

    frames_as_images: bool = False
    """Whether the placeholders of clips are those of images, frame by frame."""
    uncounted: str | None = None
    """Why the FLOPs of such a vision side or of its decoder are not known."""

    @property
    def no_costs(self) -> str | None:
        """Why its FLOPs are not known; None where they are."""
        return "its vision tower is not" if self.like is None else self.uncounted

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where methods may act."""
        pixels: tuple[Stage, ...] = ("pixels", "encoder") if self.pixels else ()
        inside: tuple[Stage, ...] = () if self.no_cuts else ("decoder",)
        return (*pixels, "projector", *inside)


def _names(text: str) -> list[str]:
    return text.split()


_BLOCKS = "its decoder keeps states of all tokens across blocks of layers"


def _like(
    kind: Encoder,
    tower: str,
    projector: str,
    pixels: bool = False,
    uncounted: str | None = None,
    **more: Any,
) -> Row:
    """A row for a vision side of a known kind; `more` are fields of `Encoder`."""
    return Row(like=kind.at(tower, projector, **more), pixels=pixels, uncounted=uncounted)


def _qwen(kind: Encoder, **more: Any) -> Row:
    """One whose parts are called, and whose pixels are cut, as Qwen does it."""
    return _like(kind, "visual", "visual.merger", pixels=True, **more)


_PADDED = "its pictures are padded to a size that only the call knows"
_PICKS = "what its layers pick their keys with is not counted"
_TOWER, _PROJECTOR = "vision_tower", "multi_modal_projector"
_GLM = replace(_qwen(PackedEncoder(), per_token=("visual.downsample",)), frames_as_images=True)

_MUSE = _like(RasterEncoder(), _TOWER, "vision_projection", per_token=("vision_adapter",))

ROWS: dict[str, Row] = {
    "aya_vision": _like(BlockEncoder(), _TOWER, _PROJECTOR),
    "cohere2_vision": _like(BlockEncoder(), _TOWER, _PROJECTOR),
    "cohere_compass": _qwen(DeepEncoder()),
    "cosmos3_edge": _like(PackedEncoder(), "visual", "projector"),
    "cosmos3_omni": _qwen(DeepEncoder()),
    "deepseek_vl": _like(BlockEncoder(), "vision_model", "aligner"),
    "deepseek_vl_hybrid": _like(
        BlockEncoder(), "vision_model", "aligner", uncounted="its second tower is not counted"
    ),
    "dots3_note": _like(PackedEncoder(), _TOWER, "vision_tower.merger", uncounted=_PICKS),
    "ernie4_5_vl_moe": _like(
        PairedEncoder(),
        _TOWER,
        "resampler_model",
        uncounted="tokens of pictures meet other experts than words",
    ),
    "exaone4_5": _qwen(WindowEncoder()),
    "gemma4": _like(PlacedEncoder(), _TOWER, "embed_vision", uncounted=_PADDED),
    "granite_docling": _like(
        BlockEncoder(),
        "vision_model",
        "vision_model.connector",
        uncounted="its connector sees tiles of several sizes",
    ),
    **dict.fromkeys(_names("glm46v glm4v glm4v_moe glm_ocr glmga"), _GLM),
    "glm5_next": replace(_GLM, uncounted=_PICKS, frames_as_images=False),
    "hyperclovax_vision_v2": _like(
        WindowEncoder(), "vision_model", "projector", per_token=("vision_model.merger",)
    ),
    "janus": _like(BlockEncoder(), "vision_model", "aligner"),
    "kimi_k25": _like(RasterEncoder(), _TOWER, "mm_projector"),
    "lfm2_vl": _like(PaddedEncoder(), _TOWER, _PROJECTOR, uncounted=_PADDED),
    "lfm3_vl": _like(
        PackedEncoder(), _TOWER, _PROJECTOR, uncounted="its tower has layers without attention"
    ),
    "lighton_ocr": _like(NativeEncoder(), "vision_encoder", "vision_projection"),
    "llama4": _like(
        BlockEncoder(),
        "vision_model",
        _PROJECTOR,
        cls_place=-1,
        per_token=("vision_model.vision_adapter",),
    ),
    "minimax_m3_vl": _like(
        PackedEncoder(),
        _TOWER,
        _PROJECTOR,
        per_patch=(f"{_PROJECTOR}.linear_1", f"{_PROJECTOR}.linear_2"),
        across_frames=True,
    ),
    "mistral_large4": _like(NativeEncoder(), _TOWER, _PROJECTOR, uncounted=_PICKS),
    "molmo2": _like(
        PooledEncoder(), _TOWER, _PROJECTOR, uncounted="its pooling of patches is not counted"
    ),
    "muse_glimmer": _MUSE,
    "muse_spark": _MUSE,
    "ovis2": _like(
        BlockEncoder(),
        _TOWER,
        "visual_embeddings_table",
        per_token=("vision_tower.head_linear",),
    ),
    "paddleocr_vl": _like(RasterEncoder(), "visual", "projector"),
    "paligemma": _like(BlockEncoder(), _TOWER, _PROJECTOR),
    "qianfan_ocr": _like(InternVLEncoder(), _TOWER, _PROJECTOR),
    "qwen2_5_omni_thinker": _qwen(WindowEncoder()),
    "qwen3_5": _qwen(PackedEncoder()),
    "qwen3_5_moe": _qwen(PackedEncoder()),
    "qwen3_omni_moe_thinker": _qwen(DeepEncoder(), deep="visual.merger_list"),
    "qwen4_exp": _qwen(PackedEncoder(), uncounted=_PICKS),
    "shieldgemma2": _like(Gemma3Encoder(), _TOWER, _PROJECTOR),
    "deepseek_ocr2": Row(separators="end"),
    "hunyuan_vl": Row(separators="begin row end"),
    "hy_v4_vl": Row(separators="row"),
    **dict.fromkeys(_names("inkling2 inkling2_loop"), Row(no_cuts=_BLOCKS)),
    "gemma3n": Row(no_cuts="its hidden states are four streams, and tokens their third axis"),
    "granite4_vision": Row(no_cuts="its decoder adds features of all tokens in its own loop"),
    "unlimited_ocr": Row(
        no_cuts="its layers see all of the prompt, but a window of the answer",
        separators="row end",
    ),
}

TESTED = frozenset(
    _names("""
    aria aya_vision cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2
    deepseek_vl deepseek_vl_hybrid dots3_note ernie4_5_vl_moe exaone4_5 fast_vlm fuyu gemma3
    gemma3n gemma4 gemma4_unified glm46v glm4v glm4v_moe glm5_next glm_ocr glmga got_ocr2
    granite4_vision granite_docling hunyuan_vl hy_v4_vl hyperclovax_vision_v2 idefics2 idefics3
    inkling2 inkling2_loop inkling_mm_model internvl janus kimi_k25 lfm2_vl lfm3_vl lighton_ocr
    llama4 llava llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7
    minimax_m3_vl mistral3 mistral_large4 molmo2 muse_glimmer muse_spark nemotron_h_omni ovis2
    paddleocr_vl paligemma perception_lm pp_chart2table qianfan_ocr qwen2_5_omni_thinker
    qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe
    qwen4_exp shieldgemma2 smolvlm step3p7 unlimited_ocr video_llama_3 video_llava vipllava
    """)
)
"""Types that the matrix of tests/families proves on the newest transformers."""

UNSCORED = frozenset(
    _names("""
    dots3_note exaone4_5 fuyu gemma4 gemma4_unified glm5_next hunyuan_vl hy_v4_vl inkling_mm_model
    kimi_k25 lfm2_vl lfm3_vl llama4 minicpm_ocr minicpmv4_6 minicpmv4_7 mistral_large4 muse_glimmer
    muse_spark nemotron_h_omni qwen3_5 qwen3_5_moe qwen4_exp
    """)
)
"""Those whose layers make queries and keys in another way than most (other names, norms, latents,
layers without rotary embeddings), so that computing them by the usual names fails or is wrong: they
are captured where the layer itself uses them."""

BROKEN = {
    ("llama4", "5.24.0"): "its own forward fails on this release of transformers; the laws hold on "
    "5.23.0"
}
"""Type and release of transformers that cannot run it."""

CLIPS = frozenset(
    _names("""
    cohere_compass cosmos3_edge cosmos3_omni dots3_note ernie4_5_vl_moe exaone4_5 gemma4 glm46v
    glm4v glm4v_moe glm_ocr glmga hy_v4_vl hyperclovax_vision_v2 lfm3_vl minimax_m3_vl
    qwen2_5_omni_thinker qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen4_exp
    """)
)
"""Those of them whose clips were tested."""

_CROSS = "its decoder looks at pictures through cross-attention, so no token stands for a picture"
_TWO_STACKS = "it has an encoder and a decoder, and the picture is in the encoder"
_QUERIES = "its pictures are a few dozen queries already"

OUT_OF_SCOPE = {
    "apertus1p5": "its pictures are token ids of a codebook, and its tiny model was not yet built",
    "blip": _TWO_STACKS,
    "blip-2": _QUERIES,
    "chameleon": "its base model is the decoder itself, and pictures are token ids of a codebook",
    "diffusion_gemma": "it writes blocks by diffusion and runs its decoder many times a step",
    "emu3": "its pictures are token ids of a codebook",
    "evolla": _CROSS,
    "florence2": _TWO_STACKS,
    "git": "the picture is a prefix inside its decoder, without placeholders in the prompt",
    "idefics": _CROSS,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "its text model puts 64 latents in by itself",
    "kosmos-2.5": "its text model puts 2048 latents in by itself",
    "mistral4": "it takes text only",
    "mllama": _CROSS,
    "pi0": "it controls a robot and writes no text",
    "pix2struct": _TWO_STACKS,
    "pp_formulanet": _TWO_STACKS,
    "t5gemma2": _TWO_STACKS,
    "udop": _TWO_STACKS,
    "vision-encoder-decoder": _TWO_STACKS,
}
"""Types that are refused, and why."""


PLUG_INS = PlugIns("row", "vlmcompress.rows")
"""Rows of other packages, each under the type that it is of."""


def row_of(name: str) -> Row:
    """The exceptions of a model type, most have none.

    Raises:
        PlugInError: another package offers what is no row.
    """
    if name in ROWS or name not in PLUG_INS.names(ROWS.keys() | TESTED):
        return ROWS.get(name, Row())
    return PLUG_INS.load(name, _as_row)


def _as_row(found: object) -> Row:
    if not isinstance(found, Row):
        raise UnsupportedModelError(f"it must be a Row, got {found!r}")
    return found
