"""One adapter for every family that shares the seams of transformers, derived from the model.

The seams: a base model that encodes pictures, puts their features in the place of placeholders and
calls a decoder stack once. What cannot be read from a model is a line in `table.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.ops.host_copies import on_cpu
from vlmcompress.patches.families.family import Family, _expect
from vlmcompress.patches.families.frames import PackedFrames
from vlmcompress.patches.families.separators import separated, views_of, with_newlines
from vlmcompress.patches.families.shapes import grid_of, pieces_of, shapes_of
from vlmcompress.patches.families.table import (
    CLIPS,
    OUT_OF_SCOPE,
    TESTED,
    UNSCORED,
    Row,
    row_of,
)
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.tokens import Grid, Layout

_BASES = ("model", "")
"""Where the base model is in what users hold; "" where it is that itself."""
_DECODERS = ("language_model", "text_model")
_INSIDE = ("", "model", "decoder")
"""Where the stack of layers is in those."""
_TOKENS = ("{}_token_id", "{}_token_index", "{}_patch_id", "{}_patch_token_id")
_ENDS = ("image_end_token_id", "vision_end_token_id", "eoi_token_id", "eoi_token_index")
"""What configurations call the token that ends an image."""
_MARKS = 2
"""Tokens that may stand between two tiles of an image."""
_MODALITIES = ("image", "video")
_NO_SCORES = "no test found them equal to the attention of its layers"
_NEWLINE = "image_newline"
"""Parameter of a base model that ends the rows of its pictures with that vector."""
_DEEPSTACK = "_deepstack_process"


class _Unknown(Encoder):
    """A vision side of which nothing is known."""

    towers = ()


class Generic(Family):
    """A family by structure.

    Its images are what the feature call gives one by one. Where that call is not told the size of
    each, tiles that follow one another with nothing but marks between them are one image.
    """

    encoder: Encoder = _Unknown()

    def __init__(self, model: nn.Module) -> None:
        """Find the seams of a model.

        Raises:
            UnsupportedModelError: one is missing; the message says which.
        """
        config: Any = getattr(model, "config", None)
        if getattr(config, "model_type", None) is None:
            raise UnsupportedModelError("it has no configuration of transformers")
        self.name = str(config.model_type)
        self.class_name, self._given_class = type(model).__name__, type(model)
        self._row = row_of(self.name)
        if self.name in OUT_OF_SCOPE:
            raise UnsupportedModelError(OUT_OF_SCOPE[self.name])
        self._base_path, base = _find_base(model)
        self.text_module = _find_decoder(base)
        self._tokens, self.feature_calls = _find_calls(base, config, self._row.frames_as_images)
        untested = self.name in TESTED - CLIPS
        self.video = "video" in self.feature_calls and not untested
        self.masks_in_base = _makes_masks(base)
        lm: Any = base.get_submodule(self.text_module)
        three_axes = "mrope" in str(getattr(lm.config, "rope_parameters", None))
        self.renumbers = not (three_axes or hasattr(base, "get_rope_index"))
        self.deepstack = _DEEPSTACK if hasattr(lm, _DEEPSTACK) else None
        self.stages = self._row.stages
        self.encoder = self._row.like or Generic.encoder
        if self.video and self._row.pixels and not self.encoder.across_frames:
            self.frames = PackedFrames()
        compared = self.name in TESTED - UNSCORED
        self.no_scores = None if compared else _NO_SCORES
        self.no_costs = self._row.no_costs
        arguments = inspect.signature(base.get_image_features).parameters  # type: ignore[arg-type]
        self._end = _end_token(config)
        self._sizes_known = any(name.endswith("grid_thw") for name in arguments)

    @property
    def row(self) -> Row:
        """What the table says of it."""
        return self._row

    def model_class(self) -> type[nn.Module]:
        return self._given_class

    def base(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self._base_path)

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        return dict(self._tokens)

    def projectors(self, base: nn.Module) -> list[nn.Module]:
        return super().projectors(base) if self.encoder.towers else []

    def features(self, output: Any) -> Any:
        found, layers = super().features(output), getattr(output, "deepstack_features", None)
        if found is None and layers:
            _, found = layers[0]  # the decoder adds all of them in its layers
        return getattr(output, "last_hidden_state", None) if found is None else found

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        words, encoder = self._row.separators, self.encoder
        if encoder.sizes is not None and encoder.sizes.format(modality) in call and not words:
            return [Layout.of(Grid(*g)) for g in encoder.grids(self.base(model), modality, call)]
        newline = getattr(self.base(model), _NEWLINE, None)
        if isinstance(newline, Tensor) and isinstance(features, list) and not words:
            found = on_cpu([(tokens == newline.to(tokens)).all(-1) for tokens in features])
            return [with_newlines(newlines) for newlines in found]
        shapes = shapes_of(modality, call)
        counts = pieces_of(features, modality, call, shapes)
        rows = shapes if len(shapes) == len(counts) else [None] * len(counts)
        if words:
            return [
                separated(words, count, row, views_of(call, number))
                for number, (count, row) in enumerate(zip(counts, rows, strict=True))
            ]
        return [Layout.of(grid_of(*each)) for each in zip(counts, rows, strict=True)]

    def continues(self, ids: list[int], pieces: list[list[int]]) -> list[bool]:
        if self._sizes_known:
            return super().continues(ids, pieces)
        pairs = zip([None, *pieces], pieces, strict=False)
        return [
            before is not None and self._joined(ids[before[-1] + 1 : piece[0]])
            for before, piece in pairs
        ]

    def of_pieces(self, layout: Layout) -> Layout:
        """Pieces of one token each, of a tower that nothing is known of, are one row: a grid of a
        single token leaves a method nothing to choose from."""
        alone = all(len(grid) == 1 for grid in layout.parts) and not self.encoder.towers
        return Layout((layout.grid,), layout.separators) if alone else layout

    def _joined(self, between: list[int]) -> bool:
        """Whether tiles with such tokens between them are of one image: none, or the marks of a
        type that says where an image ends, and does not say so here."""
        return not between or (len(between) <= _MARKS and self._end not in (None, *between))

    def check(self, model: nn.Module) -> None:
        lm = self.language_model(self.base(model))
        _expect(self, lm, "inputs_embeds", "attention_mask", "position_ids")
        self._check_cache(lm)


def _find_base(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that encodes pictures and calls the decoder, and where it is."""
    for path in _BASES:
        try:
            base = model.get_submodule(path)
        except AttributeError:
            continue
        known = inspect.signature(base.forward).parameters
        encodes = callable(getattr(base, "get_image_features", None))
        if encodes and "mm_encoder_outputs" in known and "input_ids" in known:
            return path, base
    raise UnsupportedModelError(
        "it has no module with get_image_features() and mm_encoder_outputs, which puts features of "
        "pictures in the place of placeholders"
    )


def _find_decoder(base: nn.Module) -> str:
    """Where the decoder stack is in the base model."""
    for name in (f"{outer}.{inner}".rstrip(".") for outer in _DECODERS for inner in _INSIDE):
        try:
            found = base.get_submodule(name)
        except AttributeError:
            continue
        layers = isinstance(getattr(found, "layers", None), nn.ModuleList)
        if layers and "inputs_embeds" in inspect.signature(found.forward).parameters:
            return name
    raise UnsupportedModelError(
        f"{type(base).__name__} has no decoder stack with layers under {' or '.join(_DECODERS)}"
    )


def _find_calls(base: nn.Module, config: Any, alike: bool) -> tuple[dict[str, int], dict[str, str]]:
    """Modality -> placeholder token, and -> feature call. Clips whose placeholders are those of
    images are left out, but where the table says so: a prompt of such has either or."""
    tokens: dict[str, int] = {}
    calls: dict[str, str] = {}
    for modality in _MODALITIES:
        name = f"get_{modality}_features"
        token = token_of(config, "image" if alike else modality)
        taken = set() if alike else {*tokens.values()}
        if callable(getattr(base, name, None)) and token not in (None, *taken):
            calls[modality], tokens[modality] = name, int(token)  # type: ignore[arg-type]
    if "image" not in tokens:
        raise UnsupportedModelError("its configuration names no image token")
    return tokens, calls


def token_of(config: Any, modality: str) -> int | None:
    """The placeholder of a modality that a configuration names, None where it names none."""
    for owner in (config, config.get_text_config()):
        for name in _TOKENS:
            value = getattr(owner, name.format(modality), None)
            if isinstance(value, int) and value >= 0:
                return value
    return None


def _end_token(config: Any) -> int | None:
    named = (getattr(config, name, None) for name in _ENDS)
    return next((token for token in named if isinstance(token, int)), None)


def _makes_masks(base: nn.Module) -> bool:
    """Whether the base model makes the attention masks, by the functions that it calls."""
    code: Any = inspect.unwrap(type(base).forward)
    names = code.__code__.co_names
    return any(name.startswith("create_") and "mask" in name for name in names)
