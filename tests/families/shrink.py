"""Tiny random models of any model type, made from the defaults of its configuration class.

Widths, depths and vocabularies are cut wherever they stand, every kind of layer stays. What cannot
be guessed is a line in `overrides.py`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import sys
from typing import Any

import torch
import transformers
from overrides import DROP, OVERRIDES
from stand_in_towers import stand_ins
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
)

VOCABULARY, LAYERS, DEPTH, WIDTH = 320, 4, 2, 32
PLACEHOLDERS = 200
"""Special tokens get ids from here on."""
LARGEST = {
    name: size
    for size, names in {
        64: "intermediate_size ffn_dim mlp_dim ffn_hidden_size encoder_ffn_dim decoder_ffn_dim "
        "block_ff_dim",
        48: "intermediate_size_mlp",
        32: "projector_hidden_size conv_dim block_dim",
        16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "q_lora_rank kv_lora_rank o_lora_rank chunk_size index_head_dim moe_latent_size "
        "moe_shared_expert_intermediate_size",
        8: "qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim "
        "linear_value_head_dim hidden_size_per_layer_input laurel_rank mamba_head_dim "
        "ssm_state_size",
        4: "num_experts n_routed_experts num_local_experts moe_num_experts "
        "linear_num_value_heads mamba_num_heads",
        2: "num_experts_per_tok moe_k num_experts_per_token top_k_experts moe_topk "
        "linear_num_key_heads n_groups index_n_heads num_global_key_value_heads",
        1: "num_shared_experts n_shared_experts moe_num_shared_experts n_group topk_group "
        "first_k_dense_replace",
    }.items()
    for name in names.split()
} | {"max_position_embeddings": 4096}
"""Wherever a whole number of that name is larger."""
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "num_decoder_layers")
DEPTH_KEYS = (*LAYER_KEYS, "depth", "encoder_layers", "vt_num_hidden_layers", "layers")
HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "encoder_attention_heads",
    "attention_heads",
    "vt_num_attention_heads",
)
WIDTHS = (
    "hidden_size",
    "d_model",
    "embed_dim",
    "width",
    "dim",
    "vt_hidden_size",
    "hidden_dim",
    "out_hidden_size",
    "output_dim",
    "projection_dim",
    "text_hidden_size",
    "mm_hidden_size",
    "output_hidden_size",
    "projector_dim",
    "vision_hidden_size",
    "llm_hidden_size",
)
NO_TEXT = (  # in names of sub-configurations
    "vision",
    "visual",
    "audio",
    "perceiver",
    "vq",
    "speech",
    "qformer",
    "dflash",
    "sam",
    "encoder",
)
TAPS = (
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
    "out_indices",
    "global_attn_indexes",
    "window_block_indexes",
)
RECURRENT = ("linear_attention", "conv", "mamba")


def build(model_type: str, attention: str = "eager") -> Any:
    """A tiny model with random weights under which a picture moves the logits."""
    config = tiny_config(model_type)
    torch.manual_seed(0)
    config._attn_implementation = attention
    cls = getattr(transformers, CLASSES[model_type])
    with stand_ins(model_type, cls, config):
        model = cls._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat = weight.dim() >= 2 and weight.std() < 0.1
            if flat and "norm" not in name and "embed_tokens" not in name:
                std = 0.7 / weight.shape[-1] ** 0.5 if weight.dim() == 2 else 0.1
                torch.nn.init.normal_(weight, std=std)
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model.eval()


def tiny_config(model_type: str) -> Any:
    """The configuration of `build`."""
    cls = CONFIG_MAPPING[model_type]
    own = OVERRIDES.get(model_type, {})
    values = (cls(vision_config={}) if own.get("vision") else cls()).to_dict()
    changes = dict(own.get("set", {}))
    _assume_sections(model_type, values, changes)
    values = _shrunk(values, "", {}, changes)
    values.pop("transformers_version", None)
    return cls.from_dict(values)


def _assume_sections(model_type: str, values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Sections of M-RoPE that the code assumes where the configuration says none."""
    found = re.search(r'mrope_section"?,\s*(\[[\d, ]+\])', _source(model_type))
    if found is None:
        return
    text = values.get("text_config") or values
    rope = text.get("rope_parameters")
    given = "text_config.rope_parameters" in changes or "mrope_section" in str(rope)
    if isinstance(rope, dict) and not given:
        rope["mrope_section"] = [int(size) for size in found[1].strip("[]").split(",")]
    if not text.get("head_dim"):
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": WIDTH}
        changes.setdefault("text_config.num_attention_heads", 2)
        changes.setdefault("text_config.num_key_value_heads", 1)


def _source(model_type: str) -> str:
    """Of the model and, where that is another one's, of its decoder."""
    cls = getattr(transformers, CLASSES[model_type])
    found = inspect.getsource(sys.modules[cls.__module__])
    text = getattr(CONFIG_MAPPING[model_type](), "text_config", None)
    if text is not None:
        name = type(text).__module__.replace("configuration_", "modeling_")
        found += inspect.getsource(importlib.import_module(name))
    return found


def _shrunk(
    values: dict[str, Any], where: str, ids: dict[int, int], own: dict[str, Any]
) -> dict[str, Any]:
    """One configuration, or one inside it.

    Args:
        values: as a dictionary.
        where: its dotted name.
        ids: special tokens that have got a new id; grows.
        own: exceptions by dotted name from here.
    """
    values = dict(values)
    text = not any(word in where for word in NO_TEXT)
    count = _layers(values)
    for name, value in list(values.items()):
        if isinstance(value, dict) and name.endswith(("_config", "_cfg")):
            inner = {k.split(".", 1)[1]: v for k, v in own.items() if k.startswith(f"{name}.")}
            values[name] = _shrunk(value, f"{where}.{name}".lstrip("."), ids, inner)
        else:
            values[name] = _small(name, value, text, ids)
    if isinstance(values.get("num_key_value_heads"), int):
        most = 2 if text else values.get("num_attention_heads", 4)
        values["num_key_value_heads"] = min(values["num_key_value_heads"], most)
    _shorten_lists(values, where, ids, text, count)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(values.get(name), dict):
            values[name] = _rope(values, values[name])
    if isinstance(values.get("pad_token_id"), int) and values["pad_token_id"] >= VOCABULARY:
        values["pad_token_id"] = 0
    sizes = (values.get("image_size"), values.get("patch_size"))
    if not text and all(isinstance(size, int) for size in sizes):
        values["image_size"] = 8 * values["patch_size"]
    changed = values | {name: value for name, value in own.items() if "." not in name}
    return {name: value for name, value in changed.items() if value is not DROP}


def _layers(values: dict[str, Any]) -> int | None:
    return next((values[k] for k in LAYER_KEYS if isinstance(values.get(k), int)), None)


def _small(name: str, value: Any, text: bool, ids: dict[int, int]) -> Any:
    """One value of a configuration."""
    if isinstance(value, list) and name.endswith(("_token_id", "_token_ids")):
        return [_token(name, one, ids) if isinstance(one, int) else one for one in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name.endswith(("_token_id", "_token_index", "_token_ids")):
        return _token(name, value, ids)
    if name.endswith("vocab_size") or name == "vocab_size_per_layer_input":
        return min(value, VOCABULARY)
    if name in LARGEST:
        return min(value, LARGEST[name])
    if name in (LAYER_KEYS if text else DEPTH_KEYS):
        return min(value, LAYERS if text else DEPTH)
    if name in HEADS:
        return min(value, 4)
    if name in WIDTHS:
        return min(value, WIDTH)
    if name in ("head_dim", "global_head_dim") and value > 8:
        return 16 if text else 8
    return {"sliding_window": 12, "attention_chunk_size": 16}.get(name, value)


def _token(name: str, value: int, ids: dict[int, int]) -> int:
    """A special token with an id that the small vocabulary has."""
    media = any(word in name for word in ("image", "video", "audio", "vision"))
    if value >= VOCABULARY - 120 or (value > 2 and media):
        return ids.setdefault(value, PLACEHOLDERS + len(ids))
    return value


def _kinds(names: list[str], count: int) -> list[str]:
    """A short list with every kind of layer in it, in the order of first use."""
    seen = list(dict.fromkeys(names))
    recurrent = any(name in RECURRENT or name.startswith("hybrid") for name in seen)
    if set(names[:count]) == set(seen) and not (recurrent and len(seen) > 1):
        return names[:count]
    return (seen * count)[: max(count, len(seen))]


def _shorten_lists(
    values: dict[str, Any], where: str, ids: dict[int, int], text: bool, before: int | None
) -> None:
    """Lists that have an entry for each layer."""
    if values.get("layer_types"):
        names, mlps = values["layer_types"], values.get("mlp_layer_types")
        values["layer_types"] = kinds = _kinds(names, LAYERS if text else DEPTH)
        if values.get("per_layer_config"):
            per_layer = {int(k): v for k, v in values["per_layer_config"].items()}
            of = {kind: per_layer.get(names.index(kind)) for kind in names}
            values["per_layer_config"] = {
                number: _one_layer(of[kind], where, ids)
                for number, kind in enumerate(kinds)
                if of[kind]
            }
        if mlps:
            values["mlp_layer_types"] = (mlps[:2] + [mlps[-1]] * len(names))[: len(kinds)]
        values |= {name: len(kinds) for name in LAYER_KEYS if name in values}
    now = _layers(values)
    for name, value in values.items():
        if not isinstance(value, list) or name in ("layer_types", "mlp_layer_types"):
            continue
        if before and now and len(value) == before:
            strings = all(isinstance(one, str) for one in value)
            values[name] = _kinds(value, now) if strings else value[:now]
        elif name in TAPS and value and all(isinstance(one, int) for one in value):
            values[name] = [0, 1][: len(value)]


def _one_layer(values: dict[str, Any], where: str, ids: dict[int, int]) -> dict[str, Any]:
    """What a configuration says of a single layer."""
    small = _shrunk(values, where, ids, {})
    if "num_attention_heads" in values and "num_key_value_heads" in values:
        small["num_key_value_heads"] = 4
    numbers = {k: v for k, v in small.items() if isinstance(v, int) and not isinstance(v, bool)}
    return small | {name: min(value, WIDTH) for name, value in numbers.items()}


def _rope(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """M-RoPE with sections that fit the smaller heads."""
    rope = copy.deepcopy(given)
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        old = one.get("mrope_section")
        if isinstance(old, list):
            head = values.get("head_dim") or values.get("qk_rope_head_dim")
            head = head or values["hidden_size"] // values["num_attention_heads"]
            factor = one.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1
            half = int(head * factor) // 2
            new = [max(1, size * half // sum(old)) for size in old]
            one["mrope_section"] = [new[0] + half - sum(new), *new[1:]]
    return rope
