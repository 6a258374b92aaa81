"""A tower in which tokens merge, by hand: the bare tower on the whole sequence, nothing shortened.

What merged into another token is closed as a key and given that one's state after every layer, so
that only the place where a group goes on counts. How patches lie in the tower is worked out here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.vision_utils import get_vision_window_index

from vlmcompress.patches.families.tower_layers import attention_layers


@dataclass
class Tile:
    """What is merged together: a tile, or a frame of a picture or clip."""

    rows: torch.Tensor
    """[N, m]: the places in the flattened tower of the patches of each token."""
    counts: dict[int, int]
    """Layer -> tokens that leave it."""
    first: list[int] = field(default_factory=list)
    """Places of tokens that are no patches."""
    groups: list[list[int]] = field(default_factory=list)
    """Tokens that are one, ordered by the smallest."""
    places: list[int] = field(default_factory=list)
    """Of each group the token at whose place it is."""

    def __post_init__(self) -> None:
        self.groups = [[token] for token in range(len(self.rows))]
        self.places = list(range(len(self.rows)))

    @property
    def alive(self) -> list[int]:
        """Places of the flattened tower that are still keys and queries."""
        return [*self.first, *self.rows[self.places].flatten().tolist()]


@dataclass
class Plain:
    """An `EncoderView` of numbers that are known."""

    layer: int
    layers: int
    protected: int
    hidden: torch.Tensor
    sizes: torch.Tensor
    given: torch.Tensor
    flat: torch.Tensor
    heads: int

    def keys(self) -> torch.Tensor:
        return self.flat.unflatten(-1, (self.heads, -1)).mean(-2)

    def received(self) -> torch.Tensor:
        return self.given


def packed_tiles(subject: Any, inputs: Any, schedule: Any) -> list[Tile]:
    """Frames of pictures whose patches are one sequence; `schedule` [tokens] -> counts."""
    config = subject.model.config.vision_config
    side = config.spatial_merge_size
    grids = inputs[f"{subject.modality}_grid_thw"]
    total = int(grids.prod(1).sum()) // side**2
    where = torch.arange(total)
    if hasattr(config, "fullatt_block_indexes"):
        windows = get_vision_window_index(grids, side, config.window_size, config.patch_size)[0]
        where = windows.argsort()
    rows = where[:, None] * side**2 + torch.arange(side**2)
    sizes = [h * w // side**2 for t, h, w in grids.tolist() for _ in range(t)]
    return [Tile(own, schedule(len(own))) for own in rows.split(sizes)]


def square_tiles(tiles: int, side: int, block: int, cls: int, schedule: Any) -> list[Tile]:
    """Tiles of side x side patches, tokens of block x block, behind `cls` other tokens."""
    grid = torch.arange(side * side).view(side // block, block, side // block, block)
    members = grid.transpose(1, 2).flatten(2).flatten(0, 1)
    length = cls + side * side
    return [
        Tile(
            members + cls + number * length,
            schedule(len(members)),
            [number * length + place for place in range(cls)],
        )
        for number in range(tiles)
    ]


def shrinking(schedule: dict[int, int], tokens: int) -> dict[int, int]:
    """The layers of a schedule that merge anything."""
    before = [tokens, *(count for _, count in sorted(schedule.items()))]
    pairs = zip(sorted(schedule.items()), before, strict=False)
    return {layer: count for (layer, count), last in pairs if count < last}


class MergedTower:
    """Hooks on the bare tower of a model."""

    def __init__(
        self, subject: Any, tower: Any, depth: int, method: Any, tiles: list[Tile]
    ) -> None:
        self.subject, self.method, self.tiles, self.depth = subject, method, tiles, depth
        self.layers = attention_layers(tower)[:depth]
        places = sum(tile.rows.numel() + len(tile.first) for tile in tiles)
        self.bias, self.given = torch.zeros(places), torch.zeros(places)
        self.keys = torch.zeros(0)
        self.done: dict[Any, int] = {}

    def run(self, encode: Any, monkeypatch: Any) -> Any:
        """What `encode()` gives."""
        attentions = [attention for _, attention in self.layers]
        module = sys.modules[type(attentions[0]).__module__]
        original = module.eager_attention_forward

        def spy(owner: Any, q: Any, k: Any, v: Any, attention_mask: Any, *r: Any, **kw: Any) -> Any:
            start = self.done.get(owner, 0)
            self.done[owner] = end = start + len(k) * k.shape[2]
            if owner not in attentions:
                return original(owner, q, k, v, attention_mask, *r, **kw)
            mask = self.bias[start:end].view(len(k), 1, 1, -1)
            out, weights = original(owner, q, k, v, mask, *r, **kw)
            queries = self.bias[start:end].view(len(k), 1, -1, 1) > torch.finfo(q.dtype).min
            self.given[start:end] = (weights * queries).mean(1).sum(1).flatten()
            return out, weights

        handles = []
        for number, (layer, attention) in enumerate(self.layers):
            handles.append(layer.register_forward_hook(self.after(number), prepend=True))
            handles.append(keys_of(attention).register_forward_hook(self.note))
        self.subject.model.set_attn_implementation("eager")
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(module, "eager_attention_forward", spy)
            found = encode()
        self.subject.model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
        return found

    def note(self, module: Any, args: Any, output: torch.Tensor) -> None:
        fused = output.shape[-1] == 3 * args[0].shape[-1]
        self.keys = (output.chunk(3, -1)[1] if fused else output).reshape(len(self.bias), -1)

    def after(self, number: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            flat = hidden.flatten(0, -2).clone()
            for tile in self.tiles:
                if number in tile.counts:
                    self.merge(tile, number, flat)
                for place, group in zip(tile.places, tile.groups, strict=True):
                    flat[tile.rows[group]] = flat[tile.rows[place]]
            changed = flat.view_as(hidden)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def merge(self, tile: Tile, number: int, flat: torch.Tensor) -> None:
        protected = len(tile.first)
        view = Plain(
            number,
            self.depth,
            protected,
            self.of_tokens(tile, flat)[None],
            pad(torch.tensor([[float(len(g)) for g in tile.groups]]), (protected, 0), value=1.0),
            self.of_tokens(tile, self.given[:, None])[None, :, 0] / len(tile.alive),
            self.of_tokens(tile, self.keys)[None],
            self.layers[number][1].num_heads,
        )
        found = self.method.merge(view, tile.counts[number])
        leader = [int(one) - protected for one in found.leader[0, protected:]]
        weights = found.weights[0, protected:]
        joined: dict[int, list[int]] = {}
        for old, to in enumerate(leader):
            joined.setdefault(to, []).append(old)
        places, groups = [], []
        for to, members in sorted(joined.items(), key=lambda one: min(one[1])):
            own = torch.stack([flat[tile.rows[tile.places[old]]] for old in members])
            share = weights[members] / weights[members].sum()
            flat[tile.rows[tile.places[to]]] = (share[:, None, None] * own).sum(0)
            places.append(tile.places[to])
            groups.append(sorted(token for old in members for token in tile.groups[old]))
        order = sorted(range(len(groups)), key=lambda one: groups[one][0])
        tile.places, tile.groups = [places[o] for o in order], [groups[o] for o in order]
        assert len(groups) == tile.counts[number]
        closed = torch.finfo(torch.float32).min
        self.bias[tile.rows] = closed
        for place, group in zip(tile.places, tile.groups, strict=True):
            size = torch.tensor(float(len(group)))
            self.bias[tile.rows[place]] = size.log() if self.method.proportional else 0.0

    def of_tokens(self, tile: Tile, flat: torch.Tensor) -> torch.Tensor:
        """[protected + n, D]."""
        return torch.cat([flat[tile.first], flat[tile.rows[tile.places]].mean(1)])


def keys_of(attention: Any) -> Any:
    """The module that gives keys before rotary embedding: the last norm, or the projection."""
    norm = getattr(attention, "k_norm", None)
    if getattr(norm, "weight", None) is not None:
        return norm
    return next(found for n in ("qkv", "k_proj", "k") if (found := getattr(attention, n, None)))


def picture_groups(tiles: list[Tile]) -> list[list[int]]:
    """Of tiles that are one picture or clip."""
    found, start = [], 0
    for tile in tiles:
        found += [[start + token for token in group] for group in tile.groups]
        start += len(tile.rows)
    return found
