"""What the engine needs to know of a model family. An adapter describes; it copies no forward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.contracts.method import Stage
from vlmcompress.patches.families.frames import Frames
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.patches.hooks.arguments import CACHE_NAMES, cache_name, carries_images
from vlmcompress.patches.sequence.cache_state import WHOLE, CacheState
from vlmcompress.tokens import Grid, Layout
from vlmcompress.version import NEWEST_TRANSFORMERS

IMAGES = {"image": "get_image_features"}
IMAGES_AND_CLIPS = IMAGES | {"video": "get_video_features"}
"""Modality -> feature call, as most base models name them."""

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Arguments that tell which tokens are pictures, for masks in which these see one another."""


class Family:
    """One model family of transformers.

    Most families end their base model's forward in one call of `language_model`, so an adapter
    usually states names and how to compute a grid.
    """

    name: str
    class_name: str
    """The transformers class that users hold."""
    images: bool = True
    video: bool = False
    stages: tuple[Stage, ...] = ("projector", "decoder")
    renumbers: bool = True
    """Whether positions are one number per token, so that their gaps can be closed."""
    encoder: Encoder = Encoder()
    """The vision side, for signals."""
    frames: Frames | None = None
    """How the frames of clips lie; None where they are not known to be encoded each by itself."""
    feature_calls: Mapping[str, str] = IMAGES
    """Modality -> method of the base model, or of a part of it ("visual.encode"), that returns its
    projected features."""

    text_module: str = "language_model"
    """Name of the decoder stack in the base model."""
    deepstack: str | None = None
    """Method of the decoder stack that adds visual features after its first layers, if any."""

    no_scores: str | None = None
    """Why the attention of a layer cannot be computed from its input; None where it can. The layer
    before a cut is then watched instead."""
    no_costs: str | None = None
    """Why its FLOPs are not known; None where they are."""
    masks_output: bool = False
    """Whether the model hands its attention mask to the base model and multiplies what it makes of
    the hidden states by it: `patches/call/output_mask.py` then does so for what is left."""
    masks_in_base: bool = False
    """Whether the base model makes the attention masks, because images attend to themselves."""

    def model_class(self) -> type[nn.Module]:
        """The class named by `class_name`."""
        found: type[nn.Module] = getattr(transformers, self.class_name)
        return found

    def base(self, model: nn.Module) -> nn.Module:
        """The base model: vision tower, projector and language model, no LM head."""
        found: nn.Module = model.get_submodule("model")
        return found

    def language_model(self, base: nn.Module) -> nn.Module:
        """The decoder stack inside the base model."""
        return base.get_submodule(self.text_module)

    def layers(self, base: nn.Module) -> nn.ModuleList:
        """The decoder layers in order."""
        layers = self.language_model(base).get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def towers(self, base: nn.Module) -> tuple[nn.Module, ...]:
        """The vision towers; several have the same sizes."""
        return tuple(base.get_submodule(name) for name in self.encoder.towers)

    def projectors(self, base: nn.Module) -> list[nn.Module]:
        """What makes tokens out of patches; every token goes through all of them."""
        names = (self.encoder.projector, self.encoder.deep)
        found = [base.get_submodule(name) for name in names if name is not None]
        lists = [list(part) if isinstance(part, nn.ModuleList) else [part] for part in found]
        return [module for modules in lists for module in modules]

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        """Modality -> token id that stands for one visual token in `input_ids`."""
        return {
            modality: int(getattr(model.config, f"{modality}_token_id"))
            for modality in self.feature_calls
        }

    def feature_call(self, base: nn.Module, modality: str) -> tuple[nn.Module, str]:
        """The module that a feature call is a method of, mostly the base model, and its name."""
        path, _, name = self.feature_calls[modality].rpartition(".")
        return base.get_submodule(path), name

    def feature_arguments(self, modality: str, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of a feature call as they are called elsewhere."""
        return call

    def features(self, output: Any) -> Any:
        """What a feature call returned of each image or clip; None where it gave no features."""
        return getattr(output, "pooler_output", None)

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        """How the placeholders of each image or clip lie, in the order of `features`.

        By default each of `features` is a square grid, or a row where its length is no square.

        Args:
            model: the wrapped model.
            modality: "image" or "video".
            features: per image [N, D], what the feature call returned.
            call: the arguments of the feature call by name.
        """
        return [Layout.of(square(len(tokens))) for tokens in features]

    def continues(self, ids: list[int], pieces: list[list[int]]) -> list[bool]:
        """Whether each encoded piece of a prompt belongs to the image of the piece before it.

        For families whose encoder takes tiles without saying which of them make up an image.

        Args:
            ids: the prompt.
            pieces: the columns of the visual tokens of each.
        """
        return [False] * len(pieces)

    def of_pieces(self, layout: Layout) -> Layout:
        """How the tokens of an image of several pieces lie; `layout` has the grids of all."""
        return layout

    def unmasked(self, call: Mapping[str, Any], state: CacheState) -> dict[str, Any]:
        """Arguments of the base model with which it makes masks for the chunk alone.

        Only for `masks_in_base`; `call` continues on the shortened cache of `state`.

        Raises:
            UnsupportedCallError: a new image follows on layers that hold different tokens.
        """
        types = [name for name in _TOKEN_TYPES if call.get(name) is not None]
        if not types or not carries_images(dict(call)):
            return {"attention_mask": None, **dict.fromkeys(types)}
        if len(state.stages) > 1:
            raise UnsupportedCallError(
                "a new image cannot follow on a cache whose layers hold different tokens: use a "
                "projector-stage method, or start a new cache"
            )
        length = call["input_ids"].shape[1]
        past = state.stages[WHOLE].index.shape[1] + state.tail
        changed: dict[str, Any] = {"attention_mask": None}
        for name in types:
            # The model finds images by their place in the cache.
            chunk = call[name][:, -length:]
            changed[name] = chunk.new_zeros(len(chunk), past + length)
            changed[name][:, past:] = chunk
        return changed

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        """The grid of every image where the family has only one, so that budgets fail early."""
        return None

    def largest_image(self, model: nn.Module) -> int | None:
        """Tokens of the largest image or clip; None where nothing in the model limits them."""
        grid = self.fixed_grid(model)
        return None if grid is None else len(grid)

    def image_grid_of_tile(
        self, model: nn.Module, modality: str, call: Mapping[str, Any], tile: Grid
    ) -> Grid | None:
        """The image or clip that a tile of the vision tower belongs to; None where sizes differ.

        Only where methods act at the encoder stage.

        Args:
            model: the wrapped model.
            modality: "image" or "video".
            call: the arguments of the feature call by name.
            tile: patches that the tower sees at once.

        Raises:
            UnsupportedCallError: the tokens of this modality are no patches.
        """
        return tile

    def tiles(self, pixels: Tensor) -> int | None:
        """Tiles that the pixels of a feature call bring, each with placeholders of its own; None
        where tiles are joined to images, so that only the features tell.

        Only where methods act at the encoder stage and `image_grid_of_tile` may be None.
        """
        return None

    def check(self, model: nn.Module) -> None:
        """Raise unless every seam the engine hooks is where this version of the engine expects it.

        Raises:
            UnsupportedModelError: a module, method or parameter is missing.
        """
        try:
            base = self.base(model)
            lm = self.language_model(base)
            layers = self.layers(base)
        except (AttributeError, AssertionError) as error:
            raise self._broken(str(error)) from error
        for owner, method in (self.feature_call(base, each) for each in self.feature_calls):
            if not callable(getattr(owner, method, None)):
                raise self._broken(f"{type(owner).__name__} has no {method}()")
        if self.deepstack and not callable(getattr(lm, self.deepstack, None)):
            raise self._broken(f"{type(lm).__name__} has no {self.deepstack}()")
        _expect(self, base, "input_ids", "attention_mask", "mm_encoder_outputs")
        _expect(self, lm, "inputs_embeds", "attention_mask", "position_ids")
        self._check_cache(lm)
        _expect(self, layers[0], "hidden_states", "attention_mask", "position_embeddings")

    def _check_cache(self, lm: nn.Module) -> None:
        if cache_name(lm.forward) is None:
            names = " or ".join(map(repr, CACHE_NAMES))
            raise self._broken(f"{type(lm).__name__}.forward has no parameter {names}")

    def _broken(self, detail: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name}: transformers {transformers.__version__} does not have the expected "
            f"structure ({detail}). The newest release that was tested is {NEWEST_TRANSFORMERS}: "
            f"with a later one, pip install 'transformers=={NEWEST_TRANSFORMERS}' or a newer "
            "vlmcompress; otherwise give the model as from_pretrained() makes it"
        )


def square(count: int) -> Grid:
    """A square grid, or one row when CLS or registers were kept among the tokens."""
    side = math.isqrt(count)
    return Grid(1, side, side) if side * side == count else Grid(1, 1, count)


def _expect(family: Family, module: nn.Module, *names: str) -> None:
    known = inspect.signature(module.forward).parameters
    for name in names:
        if name not in known:
            raise family._broken(f"{type(module).__name__}.forward has no parameter {name!r}")
