"""What a prefill costs on paper: operations, as published tables count them, and KV bytes.

Papers count in different ways, so a figure means something only together with its convention; see
`CONVENTIONS` and docs/flops.md. What a model really computes is in `exact` beside this file. The
tokens that enter each layer are what `tokens_per_layer` of `methods.contracts.method`,
`ImagePlan.per_layer` and `ImageReport.per_layer` say. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from vlmcompress.errors import VLMCompressError
from vlmcompress.registry import unknown


@dataclass(frozen=True)
class Shape:
    """The sizes that the cost of any transformer depends on."""

    hidden: int
    intermediate: int
    layers: int

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if name != "windows" and (not _whole(size) or size < 1):
                raise VLMCompressError(f"{name} must be a whole number above zero, got {size!r}")


@dataclass(frozen=True)
class EncoderShape(Shape):
    """A vision transformer whose MLP is two matrices."""


@dataclass(frozen=True)
class DecoderShape(Shape):
    """A language model; its MLP is gated, three matrices."""

    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int | None, ...] = ()
    """Tokens that each layer sees, None for all; empty where no layer slides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows and len(self.windows) != self.layers:
            raise VLMCompressError(f"{self.layers} layers but windows of {len(self.windows)}")

    @classmethod
    def of(cls, config: object) -> DecoderShape:
        """Read from a Hugging Face text configuration, or from that of a whole model.

        Raises:
            VLMCompressError: a size is missing, or the model is a mixture of experts, whose tokens
                do not all go through the same matrices.
        """
        text = getattr(config, "text_config", None) or config
        kind = type(text).__name__
        if experts_of(text) > 1:
            raise VLMCompressError(
                f"{kind} has {experts_of(text)} experts: only decoders whose tokens all go through "
                "the same MLP can be counted as papers do; vlmcompress.flops.first_token counts it"
            )
        sizes = {ours: getattr(text, theirs, None) for ours, theirs in _THEIRS.items()}
        if sizes["kv_heads"] is None:
            sizes["kv_heads"] = sizes["heads"]
        if sizes["head_dim"] is None and sizes["hidden"] and sizes["heads"]:
            sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        missing = [theirs for ours, theirs in _THEIRS.items() if sizes[ours] is None]
        if missing:
            raise VLMCompressError(f"{kind} is no text configuration: no {', '.join(missing)}")
        windows = windows_of(text, sizes["layers"])  # type: ignore[arg-type]
        return cls(**sizes, windows=windows if any(windows) else ())  # type: ignore[arg-type]


def experts_of(config: object) -> int:
    """Experts of each layer by a text configuration; 1 where all tokens meet the same MLP."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max(getattr(config, name, None) or 1 for name in names)


def windows_of(config: object, layers: int) -> tuple[int | None, ...]:
    """Tokens that each layer sees, its own among them, by a text configuration; None for all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])


_THEIRS = {
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary": "vocab_size",
}
"""Field of `DecoderShape` -> its name in transformers."""


def c2(shape: Shape, lengths: Sequence[float]) -> float:
    """4nd^2 + 2n^2d + 2ndm per layer, a multiply-add being 1: FastV (Eq. 5), DivPrune, FEATHER.

    The MLP is taken for two matrices and all heads for full ones, whatever the model has.
    """
    return sum(_block(shape, n, n, 2) for n in lengths)


def c3(shape: Shape, lengths: Sequence[float]) -> float:
    """4nd^2 + 2n^2d + 3ndm per layer, a multiply-add being 1: PyramidDrop, AdaptInfer.

    As `c2`, with the three matrices of a gated MLP.
    """
    return sum(_block(shape, n, n, 3) for n in lengths)


def fastv(shape: Shape, lengths: Sequence[float]) -> float:
    """The mean of `c2` over layers: the "FLOPs" column of FastV's tables."""
    return c2(shape, lengths) / shape.layers


def calflops(shape: DecoderShape, lengths: Sequence[float]) -> float:
    """2 per multiply-add with a weight, none between queries, keys and values: HiPrune.

    The head is applied to every token that leaves the last layer, as the tool of that name sees it
    in a plain forward.
    """
    d, values = shape.hidden, shape.head_dim
    weights = 2 * d * values * (shape.heads + shape.kv_heads) + 3 * d * shape.intermediate
    return 2 * (weights * sum(lengths) + d * shape.vocabulary * lengths[-1])


def llm_viewer(shape: DecoderShape, lengths: Sequence[float]) -> float:
    """LLM-Viewer's count as AIM uses it.

    2 per multiply-add with a weight or in attention, 5 per softmax entry and 17h per token and
    layer for what is elementwise; the head once, at 1.

    Deviations: for Llama the tool counts another h per token and layer, which no published digit
    shows.
    """
    h = shape.hidden
    weights = 2 * h * h + 2 * h * shape.kv_heads * shape.head_dim + 3 * h * shape.intermediate
    pairs = 4 * shape.head_dim * shape.heads + 5 * shape.heads
    return sum(2 * n * weights + n * n * pairs + 17 * h * n for n in lengths) + h * shape.vocabulary


CONVENTIONS: Mapping[str, Callable[[DecoderShape, Sequence[float]], float]] = {
    "c2": c2,
    "c3": c3,
    "fastv": fastv,
    "calflops": calflops,
    "llm-viewer": llm_viewer,
}
"""Name -> how a prefill is counted, given the tokens that enter each layer."""


def prefill_flops(
    shape: DecoderShape,
    tokens_per_layer: Sequence[float],
    other_tokens: float = 0,
    convention: str = "c3",
) -> float:
    """Operations of one prefill through the decoder.

    Args:
        shape: of the decoder.
        tokens_per_layer: visual tokens that enter each layer; means over images may be fractions.
        other_tokens: text, which enters every layer. Many papers leave it out.
        convention: one of `CONVENTIONS`. "c2" and "c3" count multiply-adds, "fastv" too but per
            layer; the others FLOPs.

    Raises:
        VLMCompressError: a count per layer is missing or negative, or nobody counts so.
    """
    if convention not in CONVENTIONS:
        raise unknown("convention", str(convention), list(CONVENTIONS))
    return CONVENTIONS[convention](shape, _lengths(shape, tokens_per_layer, other_tokens))


def encoder_macs(
    shape: EncoderShape,
    tokens_per_layer: Sequence[float],
    leaving: Sequence[float] | None = None,
) -> float:
    """Multiply-adds of the layers of a vision transformer, as `c2` counts; no patch embedding.

    Args:
        shape: of the encoder.
        tokens_per_layer: tokens that enter each layer, CLS among them.
        leaving: tokens that leave each layer, for a method that merges inside the layer: queries
            and keys are those of the entering tokens; the attention map is merged with them, and
            values, output projection and MLP run on the merged tokens (MCTF). None for methods that
            merge between layers.

    Raises:
        VLMCompressError: a count is missing or negative.
    """
    entering = _lengths(shape, tokens_per_layer)
    left = entering if leaving is None else _lengths(shape, leaving)
    return sum(_block(shape, n, rest, 2) for n, rest in zip(entering, left, strict=True))


def matrix_macs(widths: Sequence[int], tokens: float) -> float:
    """Multiply-adds of `tokens` vectors through a chain of matrices, such as a projector's MLP.

    Args:
        widths: of the vectors before, between and after the matrices: (1024, 4096, 4096) for the
            projector of LLaVA-1.5-7B.
        tokens: how many vectors.

    Raises:
        VLMCompressError: fewer than two widths, one below 1, or a negative number of tokens.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise VLMCompressError(
            f"two widths or more, all above zero, make matrices, got {tuple(widths)}"
        )
    _check_counts([tokens])
    return tokens * sum(a * b for a, b in pairwise(widths))


def kv_bytes(
    shape: DecoderShape,
    tokens_per_layer: Sequence[float],
    other_tokens: float = 0,
    bytes_per_value: int = 2,
) -> int:
    """Bytes of the keys and values that a prefill leaves in the cache.

    A layer with a sliding window of w tokens keeps the last w - 1.

    Args:
        shape: of the decoder.
        tokens_per_layer: visual tokens that enter each layer.
        other_tokens: text, which enters every layer.
        bytes_per_value: 2 for float16 and bfloat16.

    Raises:
        VLMCompressError: a count per layer is missing or negative, or a value has no bytes.
    """
    if not _whole(bytes_per_value) or bytes_per_value < 1:
        raise VLMCompressError(f"bytes_per_value must be 1 or more, got {bytes_per_value!r}")
    lengths = _lengths(shape, tokens_per_layer, other_tokens)
    if shape.windows:
        pairs = zip(lengths, shape.windows, strict=True)
        lengths = [n if window is None else min(n, window - 1) for n, window in pairs]
    return round(2 * sum(lengths) * shape.kv_heads * shape.head_dim * bytes_per_value)


def _block(shape: Shape, n: float, rest: float, matrices: int) -> float:
    """One layer: queries, keys and their products for `n` tokens, all that follows for `rest`."""
    d = shape.hidden
    before = 2 * n * d * d + n * n * d
    after = 2 * rest * d * d + rest * rest * d + matrices * rest * d * shape.intermediate
    return before + after


def _lengths(shape: Shape, counts: Sequence[float], others: float = 0) -> list[float]:
    """All tokens that enter each layer."""
    if len(counts) != shape.layers:
        raise VLMCompressError(
            f"a model of {shape.layers} layers needs as many token counts, got {len(counts)}"
        )
    _check_counts([*counts, others])
    return [count + others for count in counts]


def _check_counts(counts: Sequence[float]) -> None:
    for count in counts:
        if not (math.isfinite(count) and count >= 0):
            raise VLMCompressError(f"a number of tokens must be 0 or more, got {count}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
