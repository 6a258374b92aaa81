"""What methods are shown without any model: visual tokens, a decoder layer and a tower at random.

For measuring methods by themselves and for their tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu

from vlmcompress.methods import Method, ProjectorMethod, get_method
from vlmcompress.methods.registry import METHODS
from vlmcompress.ops.projector import Body
from vlmcompress.ops.propagation import propagate
from vlmcompress.ops.score import attention_rows
from vlmcompress.tokens import Grid, Projection, VisualTokens

LAYERS = 6
"""Layers of the ViT."""


@dataclass(frozen=True)
class Widths:
    """Sizes of the signals of a model."""

    hidden: int = 16
    """Width of features and embedded words."""
    tower: int = 8
    """Width of the keys of the ViT."""
    entering: int = 16
    """Width of what enters the projector."""
    inner: int = 24
    """Width of what enters the projector's last layer."""
    words: int = 40
    """Words of the vocabulary."""
    question: int = 5
    """Words of the question."""
    heads: int = 4
    """Of the first decoder layer."""


def methods(
    base: type | tuple[type, ...], *, leave: tuple[str, ...] = ("full", "text-only")
) -> list[str]:
    """Names of the registered methods of one kind."""
    return [name for name, cls in METHODS.items() if issubclass(cls, base) and name not in leave]


def make(name: str, folder: Path, stage: str = "projector") -> Method:
    """A method as a user would make it; some must be told about the model, or where to act."""
    method = get_method(name, **told(name, folder))
    options: dict[str, Any] = {"stage": stage} if len(method.stages) > 1 else {}
    return replace(method, **options)


def told(name: str, folder: Path) -> dict[str, Any]:
    """What a method must be told about a model that nobody has calibrated."""
    if name == "var":
        return {"dims": (1, 4)}
    if name != "embedlens":
        return {}
    path = folder / "words.json"
    path.write_text(json.dumps({"origin": "a test", "sink": [7], "dead": [5, 9, 33]}))
    return {"table": str(path)}


def tokens(
    grid: Grid,
    seed: int = 0,
    features: Tensor | None = None,
    widths: Widths | None = None,
    **changes: Any,
) -> VisualTokens:
    """All signals in float32, made from a generator; `features` and others may be given."""
    g = torch.Generator().manual_seed(seed)
    count, widths = len(grid), widths or Widths()

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def spread(*shape: int) -> Tensor:
        return randn(*shape).mul(2).softmax(-1)

    first, last = randn(widths.entering, widths.inner), randn(widths.hidden, widths.inner)
    shown = VisualTokens(
        features=randn(count, widths.hidden) if features is None else features,
        grid=grid,
        encoder_attention={layer: spread(count) for layer in range(LAYERS)},
        cls_attention=spread(count),
        keys=randn(count, widths.tower),
        text=randn(widths.question, widths.hidden),
        relevance=randn(count).tanh(),
        layer_keys={layer: randn(count, widths.tower) for layer in range(LAYERS)},
        layer_cls_attention={layer: spread(count) for layer in range(LAYERS)},
        question_logits=randn(count, widths.heads),
        vocabulary=randn(widths.words, widths.hidden),
        projection=Projection(
            randn(count, 1, widths.entering),
            Body(first.T.contiguous(), None, gelu),
            last,
            lambda values: values,
        ),
        parts=(grid,),
    )
    return replace(shown, **changes)


def asked_of(method: ProjectorMethod, shown: VisualTokens) -> VisualTokens:
    """Only the signals that the method names, of each "a|b" the first."""
    wanted = {need.split("|")[0] for need in method.asks} - {""}
    fields = {"encoder_attention", "cls_attention", "keys", "text", "relevance"}
    fields |= {"layer_keys", "layer_cls_attention", "vocabulary", "projection"}
    fields |= {"question_logits"}
    left_out: dict[str, Any] = dict.fromkeys(fields - wanted)
    shown = replace(shown, **left_out)
    layers = sorted(method.encoder_layers(LAYERS, range(LAYERS)))
    for name in ("encoder_attention", "layer_keys", "layer_cls_attention"):
        values = getattr(shown, name)
        if values is not None:
            some: dict[str, Any] = {name: {n: values[n] for n in layers}}
            shown = replace(shown, **some)
    return shown if method.across_parts else replace(shown, parts=())


@dataclass
class PlainLayer:
    """A `LayerView` on queries, keys and hidden states: words, an image and a question.

    Every layer has the same ones. Layers that ran and layers to come are not told apart.
    """

    grid: Grid
    parts: tuple[Grid, ...]
    layer: int
    depth: int
    index: Tensor
    """[V] int64: places that are left."""
    queries: Tensor
    """[H, n, hd] of the tokens that are left; the question stands last."""
    cached: Tensor
    """[Hkv, n, hd] keys."""
    hidden: Tensor
    """[n, D] float32."""
    gates: Tensor
    """[n, I]: what the MLP of the layer that ran computed."""
    before: int
    """Tokens before the image."""

    def __post_init__(self) -> None:
        start, end = self.before, self.before + len(self.index)
        self.visual = torch.arange(start, end, device=self.index.device)
        self.text = torch.arange(end, self.queries.shape[1], device=self.index.device)

    @property
    def entered(self) -> Tensor:
        """[n, D] float32: what entered the layer that ran, here half of what left it."""
        return self.hidden / 2

    def without(self, layer: int, kept: Tensor) -> PlainLayer:
        """The view before a later layer, of the places `kept` [K] of the visual tokens."""
        left = torch.cat([torch.arange(self.before), self.visual[kept], self.text])
        return replace(
            self,
            layer=layer,
            index=self.index[kept],
            queries=self.queries[:, left].contiguous(),
            cached=self.cached[:, left].contiguous(),
            hidden=self.hidden[left],
            gates=self.gates[left],
        )

    def attention(
        self,
        rows: Literal["last", "text", "after"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Literal["this", "next", "previous"] = "this",
    ) -> Tensor:
        """[H, R, n], or [H, R, V]: what the rows attend to."""
        picked = {"last": self.text[-1:], "text": self.text, "after": self.text[:1]}[rows]
        if keys == "visual":
            return attention_rows(self.queries[:, picked], self.cached[:, self.visual], self._scale)
        seen = torch.arange(self.queries.shape[1]) <= picked[:, None]
        return attention_rows(self.queries[:, picked], self.cached, self._scale, seen)

    def propagate(
        self,
        mass: Tensor,
        *,
        temperature: float = 1.0,
        steps: int = 1,
        of: Literal["this", "previous"] = "this",
    ) -> Tensor:
        """[H, n]: steps of mass over the attention graph."""
        columns = torch.arange(self.queries.shape[1])
        return propagate(
            self.queries,
            self.cached,
            self._scale,
            mass,
            lambda start, stop: columns <= columns[start:stop, None],
            temperature=temperature,
            steps=steps,
        )

    def keys(
        self, *, rope: bool = True, of: Literal["this", "next", "previous"] = "this"
    ) -> Tensor:
        """[Hkv, n, hd] float32."""
        return self.cached.float()

    def activations(self, rows: Tensor, of: Literal["previous"] = "previous") -> Tensor:
        """[R, I] float32."""
        return self.gates[rows].float()

    @property
    def _scale(self) -> float:
        return float(self.queries.shape[-1] ** -0.5)


@dataclass
class PlainTower:
    """An `EncoderView` on tensors."""

    layer: int
    layers: int
    protected: int
    hidden: Tensor
    """[B, n, D]."""
    found: Tensor
    """[B, n, d] float32 keys."""

    def __post_init__(self) -> None:
        self.sizes = torch.ones_like(self.hidden[..., 0], dtype=torch.float32)

    def keys(self) -> Tensor:
        """[B, n, d]."""
        return self.found

    def received(self) -> Tensor:
        """[B, n]: the same for all."""
        return self.sizes / self.hidden.shape[1]
