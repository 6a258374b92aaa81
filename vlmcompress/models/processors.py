"""Processors by folder or hub id, with and without torchvision.

Where torchvision imports, transformers' own classes are used. Without it transformers loads no
processor that has a video processor, not even for images; such a processor is then put together
here, from its own class, with a part of `video_processors`.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from vlmcompress.models.torchvision import check_torchvision
from vlmcompress.models.video_processors import (
    InternVLVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionVideoProcessor,
    NoVideoProcessor,
    SmolVLMVideoProcessor,
    VideoLlavaVideoProcessor,
)
from vlmcompress.models.video_processors_qwen import (
    Glm46VVideoProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)

_VIDEO = {
    "Qwen2VLProcessor": Qwen2VLVideoProcessor,
    "Qwen2_5_VLProcessor": Qwen2VLVideoProcessor,
    "Qwen3VLProcessor": Qwen3VLVideoProcessor,
    "Glm46VProcessor": Glm46VVideoProcessor,
    "Qwen2_5OmniProcessor": Qwen2VLVideoProcessor,
    "Qwen3OmniMoeProcessor": Qwen2VLVideoProcessor,
    "InternVLProcessor": InternVLVideoProcessor,
    "LlavaOnevisionProcessor": LlavaOnevisionVideoProcessor,
    "LlavaNextVideoProcessor": LlavaNextVideoVideoProcessor,
    "VideoLlavaProcessor": VideoLlavaVideoProcessor,
    "SmolVLMProcessor": SmolVLMVideoProcessor,
}
"""Processor of transformers -> what takes the place of its video processor, where the files name
none, as old ones do. transformers' own list of these names is blank without torchvision, and a name
cannot be had from another: the processor of Qwen2.5-VL goes with the video processor of Qwen2-VL.
"""


def load_processor(where: str, **options: Any) -> ProcessorMixin:
    """The processor in a folder or on the hub.

    Args:
        where: a folder or a hub id.
        options: of `AutoProcessor.from_pretrained`.

    Raises:
        UnsupportedModelError: torchvision is installed but does not import.
    """
    if not check_torchvision():
        kind = _processor_class(where, options)
        if kind is not None and "video_processor" in kind.get_attributes():
            return _put_together(kind, where, options)
    processor: ProcessorMixin = AutoProcessor.from_pretrained(where, **options)
    return processor


def complete(processor: Any, model: Any) -> None:
    """Give a processor of an old folder the sizes of the model, without which it counts no tokens.

    Processors of LLaVA lack them where they were saved before transformers 4.45.

    Args:
        processor: may be changed.
        model: that it goes with.
    """
    if getattr(processor, "patch_size", 0) is not None:
        return
    vision = getattr(model.config, "vision_config", None)
    size = getattr(vision, "patch_size", None)
    if size is None:
        return
    processor.patch_size = size
    if getattr(processor, "vision_feature_select_strategy", None) is None:
        processor.vision_feature_select_strategy = getattr(
            model.config, "vision_feature_select_strategy", None
        )
    names = [name.rpartition(".")[2] for name, _ in model.named_parameters()]
    # The class token is counted first and then taken off by the strategy "default".
    if {"class_embedding", "cls_token"} & set(names):
        processor.num_additional_image_tokens = 1


def _processor_class(where: str, options: dict[str, Any]) -> Any:
    """The processor class that the files name, else the one of the config; None for remote code."""
    for read in (ProcessorMixin.get_processor_dict, BaseImageProcessor.get_image_processor_dict):
        try:
            named = read(where, **options)[0].get("processor_class")
        except OSError:
            continue  # no such file
        if named is not None:
            return getattr(transformers, named, None)
    return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(where, **options)), None)


def _put_together(kind: Any, where: str, options: dict[str, Any]) -> ProcessorMixin:
    """What `kind.from_pretrained` does, with a video processor that needs no torchvision."""
    parts = {
        "image_processor": AutoImageProcessor,
        "feature_extractor": AutoFeatureExtractor,
        "tokenizer": AutoTokenizer,
        "video_processor": _video_class(kind, where, options),
    }
    settings, rest = kind.get_processor_dict(where, **options)
    loaded = [parts[name].from_pretrained(where, **options) for name in kind.get_attributes()]
    processor: ProcessorMixin = _without_check(kind).from_args_and_dict(loaded, settings, **rest)
    return processor


def _video_class(kind: Any, where: str, options: dict[str, Any]) -> Any:
    """Our stand-in for the video processor that the files name, else that goes with `kind`."""
    settings: dict[str, Any] = NoVideoProcessor.get_video_processor_dict(where, **options)[0]
    named = settings.get("video_processor_type")
    if named is None:
        return _VIDEO.get(kind.__name__, NoVideoProcessor)
    return {ours.__name__: ours for ours in _VIDEO.values()}.get(named, NoVideoProcessor)


def _without_check(kind: Any) -> Any:
    """A subclass of the same name that takes our video processor.

    The check of transformers looks up a base class that is not there without torchvision.
    """

    def check_argument_for_proper_class(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return type(argument)
        return kind.check_argument_for_proper_class(self, argument_name, argument)

    changes = {
        "check_argument_for_proper_class": check_argument_for_proper_class,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), changes)
