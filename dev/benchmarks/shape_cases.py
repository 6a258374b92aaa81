"""What is measured on shapes of published models: cases, and methods with their budgets."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods import Method
from vlmcompress.methods.registry import COMPOSITIONS, METHODS
from vlmcompress.profiler.published_shapes import configuration

ENDS = ("full", "text-only")
COUNTS = ("192", "128", "64")
SMALLEST = COUNTS[-1]
SWEPT = ("pool", "divprune", "hiprune", "visionzip")
"""Methods that a CPU measures at all counts, the others at the smallest."""
ON_LONG = ("pool", "divprune", "visionzip", "fastv", "pyramiddrop")
"""Methods that a CPU also measures on the longest prompt."""
SHARE, OF_2026 = "25%", "arXiv 26"


@dataclass(frozen=True)
class ShapeCase:
    """A model to measure on."""

    shape: str
    """Name in `profiler.published_shapes.SHAPES`."""
    layers: int | None = None
    """Decoder layers; None for all."""
    encoder_layers: int | None = None
    attention: str = "sdpa"

    @classmethod
    def read(cls, text: str) -> "ShapeCase":
        """`llava-1.5-7b:8:3` is 8 decoder layers and 3 of the vision tower; none for all."""
        name, *counts = text.split(":")
        if len(counts) > 2 or not all(n.isdecimal() or not n for n in counts):
            raise VLMCompressError(
                "a case is a shape and up to two numbers of layers, as llava-1.5-7b:8:3, "
                f"got {text!r}"
            )
        layers, encoder_layers = (*(int(n) if n else None for n in counts), None, None)[:2]
        configuration(name, layers, encoder_layers)  # says what is possible
        return cls(name, layers, encoder_layers)

    @property
    def name(self) -> str:
        """For people, and to tell cases apart."""
        cuts = [f"{n} {of}" for n, of in self._counts() if n is not None]
        return ", ".join([self.shape, *cuts, self.attention])

    def _counts(self) -> list[tuple[int | None, str]]:
        return [(self.layers, "decoder layers"), (self.encoder_layers, "ViT layers")]

    @property
    def depth(self) -> float:
        """How many times deeper the whole decoder is."""
        whole = configuration(self.shape).text_config.num_hidden_layers
        return float(whole / (self.layers or whole))


CPU = [ShapeCase("qwen2-0.5b-llava", None, 3), ShapeCase("qwen2-0.5b-llava-next", None, 3)]
CUDA = [ShapeCase("llava-1.5-7b"), ShapeCase("llava-next-7b"), ShapeCase("qwen2.5-vl-7b")]


def cases(device: str, texts: Sequence[str]) -> list[ShapeCase]:
    """The cases asked for, else those for the device; on CUDA with FlashAttention 2 where it is."""
    chosen = [ShapeCase.read(text) for text in texts] or (CUDA if device == "cuda" else CPU)
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    more = [
        ShapeCase(one.shape, one.layers, one.encoder_layers, "flash_attention_2")
        for one in (chosen if flash else ())
    ]
    return [*chosen, *more]


def budgets_of(name: str, case: ShapeCase, device: str) -> list[str]:
    """What is measured of a method without `--budgets`; nothing for most on the longest prompt.

    Methods of 2026 and papers of several stages cut late, and many cannot keep 64 tokens.
    """
    recent = name in COMPOSITIONS or METHODS.get(name).paper.startswith(OF_2026)
    late = [SHARE] if recent else []
    if device == "cuda":
        return [*COUNTS, *late]
    if case == CPU[1]:
        return [SMALLEST] if name in ON_LONG else []
    return [*(COUNTS if name in SWEPT else [SMALLEST]), *late]


def settings(
    case: ShapeCase, device: str, budgets: Sequence[str], only: Sequence[str]
) -> list[tuple[str, str | None]]:
    """Methods, each with its budgets; those in the decoder also as in their paper.

    Args:
        case: to measure on.
        device: to measure on.
        budgets: for all methods, in place of what `budgets_of` says.
        only: methods; all without any.

    Raises:
        VLMCompressError: a name that is not known, or one of `ENDS`.
    """
    if set(only) & set(ENDS):
        raise VLMCompressError(
            f"{' and '.join(ENDS)} are measured beside any other method: name one"
        )
    found: list[tuple[str, str | None]] = []
    for name in only or names():
        parts = parts_of(name)
        asked: list[str | None] = [*(budgets or budgets_of(name, case, device))]
        if asked and not any(part.takes_budget for part in parts):
            asked = [None]
        elif asked and all(part.stages == {"decoder"} for part in parts):
            asked.append(None)
        found += [(name, budget) for budget in dict.fromkeys(asked)]
    return found


def names() -> list[str]:
    """All that is measured: methods, and papers of several stages."""
    return [name for name in METHODS.names() if name not in ENDS] + list(COMPOSITIONS)


def parts_of(name: str) -> list[type[Method]]:
    """The methods of a paper of several stages, or the one method."""
    return [METHODS.get(part) for part in COMPOSITIONS.get(name, name).split("+")]
