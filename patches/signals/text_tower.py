"""Image-text similarity by the CLIP model that a vision tower was taken from."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.models.loading import without_bar
from vlmcompress.models.names import ASSETS, resolve

BUILT_IN = {"tiny-clip": "tiny_clip", "small-clip": "small_clip"}
"""Name of a text tower that ships with the package -> its folder in `ASSETS`."""

_HOW = (
    "give text_tower= the CLIP model that the vision tower was taken from: a folder, a Hugging "
    "Face id such as openai/clip-vit-large-patch14-336, or (model, tokenizer)"
)


_KEPT = 20
"""Positions that stay as they were trained where a table of positions is stretched ..."""
_STRETCH = 4
"""... by this factor."""


@dataclass(frozen=True)
class LongText:
    """A text tower that reads long questions to their end, rather than cut to what CLIP can read.

    Of its table of positions the first 20 rows are kept and the others stretched four-fold by
    linear interpolation, so that 77 positions become 248 and 64 become 196. Nothing is trained, and
    the CLIP model is left as it is.

    Source: PPLLaVA, arXiv 2411.02327, section 3.3.

    Deviations:
        Only a question that is too long for the original table is read with the stretched one.
        The authors read all with it, and train.
    """

    tower: Any = None
    """What `text_tower` takes otherwise; None for the model's own."""


class TextTower:
    """A CLIP model and its tokenizer, on unit vectors in float32."""

    def __init__(self, model: Any, tokenizer: Any, long: bool = False) -> None:
        self._model, self._tokenizer, self._long = model, tokenizer, long

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTower:
        """A copy of a compressed model reads with the same tower: it is never changed."""
        return self

    @torch.no_grad()
    def read(self, text: str) -> Tensor:
        """[C] unit embedding of `text`, which is cut to the length that the tower can read."""
        model, options = self._model, {}
        longest = model.config.text_config.max_position_embeddings
        reach = _reach(longest) if self._long else longest
        given = self._tokenizer(text, truncation=True, max_length=reach, return_tensors="pt")
        ids, mask = (given[name].to(model.device) for name in ("input_ids", "attention_mask"))
        if ids.shape[1] > longest:
            model = _stretched_twin(model)
            options["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None]
        found = model.get_text_features(input_ids=ids, attention_mask=mask, **options)
        return normalize(found.pooler_output[0].float(), dim=-1)

    @torch.no_grad()
    def look(self, hidden: Tensor) -> Tensor:
        """[..., C] unit embeddings of states [..., D], as CLIP makes them of the last CLS."""
        weight = self._model.visual_projection.weight
        normed = self._model.vision_model.post_layernorm(hidden.to(weight))
        return normalize(self._model.visual_projection(normed).float(), dim=-1)


def find(given: Any, tower: nn.Module, width: int) -> TextTower:
    """The text tower for a vision tower.

    Args:
        given: a folder, a Hugging Face id, "tiny-clip", a pair (CLIPModel, tokenizer), None, or a
            `LongText` of one of these. None finds one of `BUILT_IN`, and only where the patch
            embedding of the vision tower is its own.
        tower: the vision tower of the model.
        width: of its hidden states.

    Raises:
        UnsupportedModelError: there is none, or one for another vision tower.
        VLMCompressError: it cannot be loaded.
    """
    long, given = isinstance(given, LongText), chosen(given)
    if given is None:
        given = _built_in(tower)
        if given is None:
            raise UnsupportedModelError(
                f"relevance needs a text tower, and this model brings none: {_HOW}"
            )
    model, tokenizer = given if isinstance(given, tuple | list) else load(given, tower)
    try:
        own = int(model.visual_projection.in_features)
        complete = all(
            map(callable, (model.vision_model.post_layernorm, model.get_text_features, tokenizer))
        )
    except AttributeError:
        complete = False
    if not complete:
        raise UnsupportedModelError(f"a {type(model).__name__} is no CLIP model: {_HOW}")
    if own != width:
        raise UnsupportedModelError(
            f"the text tower belongs to a vision tower of width {own}, this one has {width}: {_HOW}"
        )
    return TextTower(model, tokenizer, long)


def check(given: Any) -> None:
    """Raise a VLMCompressError unless `given` has the form of a text tower; see `find`."""
    tower = chosen(given)
    pair = isinstance(tower, tuple | list) and len(tower) == 2
    if not (tower is None or pair or (isinstance(tower, str | Path) and str(tower))):
        raise VLMCompressError(
            f"text_tower={short(tower)} is not possible: give a folder, a Hugging Face id, "
            "'tiny-clip', or a pair (CLIPModel, tokenizer)"
        )


def chosen(given: Any) -> Any:
    """What the user chose, None for the model's own tower."""
    return given.tower if isinstance(given, LongText) else given


def stretched(table: Tensor) -> Tensor:
    """[L, D] -> [4 * L - 60, D] positions; see `LongText`. At most 20 stay as they are."""
    kept, rest = table[:_KEPT], table[_KEPT:]
    if not len(rest):
        return table
    step = torch.cat([rest.diff(dim=0), table[-1:] - table[-2:-1]])
    share = torch.arange(_STRETCH, device=table.device)[:, None] / _STRETCH
    return torch.cat([kept, (rest[:, None] + share * step[:, None]).flatten(0, 1)]).to(table)


def _reach(longest: int) -> int:
    return longest + (_STRETCH - 1) * max(0, longest - _KEPT)


def _stretched_twin(model: Any) -> Any:
    """A CLIP model that shares all weights with `model` but its table of text positions."""
    end = "position_embedding"
    names = [name for name, _ in model.text_model.named_modules() if name.endswith(end)]
    path = ["text_model", *names[0].split(".")]
    table = stretched(model.get_submodule(".".join(path)).weight)
    return _replaced(model, path, nn.Embedding(len(table), table.shape[1], _weight=table))


def _replaced(module: nn.Module, path: list[str], leaf: nn.Module) -> nn.Module:
    """`module` with another submodule at `path`; the modules on the way there are copies."""
    if not path:
        return leaf
    twin, (name, *rest) = copy.copy(module), path
    twin._modules = {**module._modules, name: _replaced(module.get_submodule(name), rest, leaf)}
    return twin


def load(name_or_path: str | Path, tower: nn.Module) -> tuple[Any, Any]:
    """A CLIP model in float32, on the device of `tower`, and its tokenizer.

    Raises:
        VLMCompressError: it cannot be found or loaded.
    """
    from transformers import AutoTokenizer, CLIPModel

    name = str(name_or_path)
    where = str(ASSETS / BUILT_IN[name]) if name in BUILT_IN else resolve(name)
    try:
        with without_bar() if name in BUILT_IN else nullcontext():
            loaded: Any = CLIPModel.from_pretrained(
                where, dtype=torch.float32, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise VLMCompressError(f"cannot load the text tower {name!r}: {reason}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers fills them with random numbers
        raise UnsupportedModelError(f"text tower {name!r} is no CLIP model: {_HOW}")
    return nn.Module.to(model.eval(), next(tower.parameters()).device), tokenizer


def _built_in(tower: nn.Module) -> str | None:
    """The one of `BUILT_IN` that embeds patches with the weights of `tower`, up to rounding."""
    from safetensors import safe_open

    end = "patch_embedding.weight"
    mine = [value for name, value in tower.named_parameters() if name.endswith(end)]
    if len(mine) != 1 or mine[0].is_meta:
        return None
    for clip, folder in BUILT_IN.items():
        with safe_open(ASSETS / folder / "model.safetensors", "pt") as weights:
            own = next(weights.get_tensor(name) for name in weights.keys() if name.endswith(end))  # noqa: SIM118
        if mine[0].shape == own.shape and torch.allclose(
            mine[0].float().cpu(), own.float(), rtol=2**-7, atol=1e-4
        ):
            return clip
    return None
