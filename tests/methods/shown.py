"""What methods are shown in their tests: visual tokens with every signal, and a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dev.benchmarks import random_signals as stand_ins
from dev.benchmarks.random_signals import LAYERS, Widths, asked_of, methods, tokens
from vlmcompress.tokens import Grid

__all__ = ["LAYERS", "Layer", "asked_of", "make", "methods", "tokens", "told"]


def make(name, folders):
    """A method as a user would make it; some must be told about the model."""
    return stand_ins.make(name, folders.mktemp("tables"))


def told(name, folders):
    """What a method must be told about a model that nobody has calibrated."""
    return stand_ins.told(name, folders.mktemp("tables"))


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
        self.hidden = torch.randn(n, Widths().hidden, generator=g)
        self.gates = torch.randn(n, Widths().inner, generator=g)
        self.entered = self.hidden + torch.randn(self.hidden.shape, generator=g)
        if self.constant:
            self.logits, self.hidden, self.gates, self.entered = (
                torch.ones_like(x) for x in (self.logits, self.hidden, self.gates, self.entered)
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
        picked = {"last": self.text[-1:], "text": self.text, "after": self.text[:1]}[rows]
        if keys == "visual":
            return logits[:, picked][..., self.visual].softmax(-1)
        return logits[:, picked].softmax(-1)

    def propagate(self, mass, *, temperature=1.0, steps=1, of="this"):
        n = self.logits.shape[-1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        graph = (self.logits.masked_fill(~seen, float("-inf")) / temperature).softmax(-1)
        for _ in range(steps):
            mass = torch.einsum("hn,hnm->hm", mass.expand(len(graph), n), graph)
        return mass

    def keys(self, *, rope=True, of="this"):
        return self.hidden.view(len(self.hidden), 2, -1).transpose(0, 1)

    def activations(self, rows, of="previous"):
        return self.gates[rows]
