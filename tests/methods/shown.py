"""What methods are shown in their tests: visual tokens with every signal, and a decoder layer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch

from vlmcompress.methods import METHODS, get_method
from vlmcompress.tokens import Grid, Projection, VisualTokens

LAYERS = 6
"""Of the ViT."""
WIDTH = 16


def methods(base, *, leave=("full", "text-only")):
    """Names of the registered methods of one kind."""
    return [name for name, cls in METHODS.items() if issubclass(cls, base) and name not in leave]


def make(name, folders):
    """A method as a user would make it; some must be told about the model."""
    method = get_method(name, **told(name, folders))
    return replace(method, stage="projector") if len(method.stages) > 1 else method


def told(name, folders):
    """What a method must be told about a model that nobody has calibrated."""
    if name == "var":
        return {"dims": (1, 4)}
    if name != "embedlens":
        return {}
    path = folders.mktemp("tables") / "words.json"
    path.write_text(json.dumps({"origin": "a test", "sink": [7], "dead": [5, 9, 33]}))
    return {"table": str(path)}


def tokens(grid, seed=0, features=None, **changes):
    """All signals, made from a generator; `features` and others may be given."""
    g = torch.Generator().manual_seed(seed)
    count = len(grid)

    def randn(*shape):
        return torch.randn(*shape, generator=g)

    def spread(*shape):
        return randn(*shape).mul(2).softmax(-1)

    body, last = randn(WIDTH, 24), randn(WIDTH, 24)
    shown = VisualTokens(
        features=randn(count, WIDTH) if features is None else features,
        grid=grid,
        encoder_attention={layer: spread(count) for layer in range(LAYERS)},
        cls_attention=spread(count),
        keys=randn(count, 8),
        text=randn(5, WIDTH),
        relevance=randn(count).tanh(),
        layer_keys={layer: randn(count, 8) for layer in range(LAYERS)},
        layer_cls_attention={layer: spread(count) for layer in range(LAYERS)},
        vocabulary=randn(40, WIDTH),
        projection=Projection(
            randn(count, 1, WIDTH),
            lambda x: torch.nn.functional.gelu(x.flatten(1) @ body.to(x)),
            last,
            lambda values: values,
        ),
        parts=(grid,),
    )
    return replace(shown, **changes)


def asked_of(method, shown):
    """Only the signals that the method names, of each "a|b" the first."""
    wanted = {need.split("|")[0] for need in method.asks} - {""}
    fields = ("encoder_attention", "cls_attention", "keys", "text", "relevance")
    fields += ("layer_keys", "layer_cls_attention", "vocabulary", "projection")
    shown = replace(shown, **dict.fromkeys(set(fields) - wanted))
    if shown.encoder_attention is not None or shown.layer_keys is not None:
        layers = method.encoder_layers(LAYERS, range(LAYERS))
        for name in ("encoder_attention", "layer_keys", "layer_cls_attention"):
            values = getattr(shown, name)
            if values is not None:
                shown = replace(shown, **{name: {n: values[n] for n in sorted(layers)}})
    return shown if method.across_parts else replace(shown, parts=())


@dataclass
class Layer:
    """A decoder layer with random weights as a `LayerView`: some words, an image, a question."""

    grid: Grid
    layer: int = 3
    depth: int = 6
    seed: int = 0
    before: int = 2
    words: int = 4
    constant: bool = False
    nan: bool = False
    survivors: tuple[int, ...] | None = None

    def __post_init__(self):
        g = torch.Generator().manual_seed(self.seed)
        self.parts = (self.grid,)
        every = range(len(self.grid)) if self.survivors is None else self.survivors
        self.index = torch.tensor(list(every), dtype=torch.long)
        n = self.before + len(self.index) + self.words
        self.visual = torch.arange(self.before, n - self.words)
        self.text = torch.arange(n - self.words, n)
        self.logits = torch.randn(3, n, n, generator=g)
        self.hidden = torch.randn(n, WIDTH, generator=g)
        self.gates = torch.randn(n, 24, generator=g)
        if self.constant:
            self.logits, self.hidden, self.gates = (
                torch.ones_like(x) for x in (self.logits, self.hidden, self.gates)
            )
        if self.nan:
            self.logits[..., self.visual[-1]] = torch.nan
            self.hidden[self.visual[-1]] = torch.nan
            self.gates[self.visual[-1]] = torch.nan

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        n = self.logits.shape[-1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        logits = self.logits if rope else self.logits * 0.5
        logits = logits.masked_fill(~seen, float("-inf"))
        picked = self.text[-1:] if rows == "last" else self.text
        if keys == "visual":
            return logits[:, picked][..., self.visual].softmax(-1)
        return logits[:, picked].softmax(-1)

    def propagate(self, mass, *, temperature=1.0, of="this"):
        n = self.logits.shape[-1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        graph = (self.logits.masked_fill(~seen, float("-inf")) / temperature).softmax(-1)
        return torch.einsum("hn,hnm->hm", mass.expand(len(graph), n), graph)

    def keys(self, *, rope=True, of="this"):
        return self.hidden.view(len(self.hidden), 2, -1).transpose(0, 1)

    def activations(self, rows, of="previous"):
        return self.gates[rows]
