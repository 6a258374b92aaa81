"""Video processors that need numpy and Pillow only, for machines without torchvision.

Each bears the name of the class of transformers whose place it takes, has its settings and gives
its pixel values up to the rounding of one step of eight bits. None samples frames: `read_video`
does. Fields of the settings are explained in transformers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_metadata, make_batched_videos

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError

Pixels = npt.NDArray[Any]


class PortableVideoProcessor(VideoProcessorMixin, PilBackend):
    """Resizes, crops and normalises every frame by itself."""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    valid_kwargs: Any = VideosKwargs
    model_input_names: Any = ("pixel_values_videos",)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """The model's inputs for some clips.

        Args:
            videos: one clip or several, each [T, H, W, 3] or [T, 3, H, W] of uint8, or a list of
                frames.
            kwargs: settings that differ from those of this object; `video_metadata`;
                `return_metadata`; `return_tensors`, which is "pt" whatever is given.

        Raises:
            UnsupportedCallError: paths instead of frames, or frames are to be sampled.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        names = self.valid_kwargs.__annotations__
        settings: dict[str, Any] = self._standardize_kwargs(
            **({name: getattr(self, name, None) for name in names} | given)
        )
        if settings.get("do_sample_frames"):
            raise UnsupportedCallError(
                "without torchvision frames are sampled by vlmcompress.read_video: "
                "pass do_sample_frames=False"
            )
        videos = make_batched_videos(videos)
        if any(isinstance(video, (str, list)) for video in videos):
            raise UnsupportedCallError(
                "without torchvision a processor takes frames, not paths: read the file with "
                "vlmcompress.read_video"
            )
        clips = [[self._frame(frame) for frame in video] for video in videos]
        data = self._clips(clips, settings)
        if settings.get("return_metadata"):
            data["video_metadata"] = make_batched_metadata(videos, settings["video_metadata"])
        return BatchFeature(data)

    def _frame(self, frame: Any) -> Pixels:
        """[3, H, W]."""
        pixels: Pixels = self.process_image(frame, do_convert_rgb=False)
        return np.repeat(pixels, 3, 0) if len(pixels) == 1 else pixels[:3]

    def _clips(self, clips: list[list[Pixels]], settings: dict[str, Any]) -> dict[str, Any]:
        done = [self._stack(clip, settings, settings["size"]) for clip in clips]
        same = len({clip.shape for clip in done}) == 1
        return {"pixel_values_videos": torch.stack(done) if same else done}

    def _stack(self, clip: list[Pixels], settings: dict[str, Any], *sizes: Any) -> Tensor:
        """[T, 3, h, w] float32: a clip resized to each of `sizes` in turn, and normalised."""
        frames = []
        for frame in clip:
            if settings["do_resize"]:
                for size in sizes:
                    frame = self.resize(frame, size, settings["resample"])
            if settings.get("do_center_crop"):
                frame = self.center_crop(frame, settings["crop_size"])
            if settings["do_rescale"]:
                frame = self.rescale(frame, settings["rescale_factor"])
            if settings["do_normalize"]:
                frame = self.normalize(frame, settings["image_mean"], settings["image_std"])
            frames.append(torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32)))
        return torch.stack(frames)


class LlavaOnevisionVideoProcessor(PortableVideoProcessor):
    size: ClassVar = {"height": 384, "width": 384}
    default_to_square = False


class InternVLVideoProcessor(PortableVideoProcessor):
    size: ClassVar = {"height": 384, "width": 384}


class LlavaNextVideoVideoProcessor(PortableVideoProcessor):
    size: ClassVar = {"shortest_edge": 224}
    default_to_square = False
    do_center_crop = True
    crop_size: ClassVar = {"height": 224, "width": 224}


class VideoLlavaVideoProcessor(LlavaNextVideoVideoProcessor):
    pass


class SmolVLMSettings(VideosKwargs, total=False):
    max_image_size: dict[str, int]
    video_sampling: dict[str, Any]


class SmolVLMVideoProcessor(PortableVideoProcessor):
    """Frames go through a size with the longest edge of `size` to a square one."""

    resample = PILImageResampling.LANCZOS
    size: ClassVar = {"longest_edge": 4 * 364}
    max_image_size: ClassVar = {"longest_edge": 364}
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    valid_kwargs = SmolVLMSettings
    model_input_names = ("pixel_values", "pixel_attention_mask")
    _LARGEST = 4096

    def __init__(self, **kwargs: Any) -> None:
        sampling = kwargs.get("video_sampling") or {}
        if "video_size" in sampling:
            kwargs["size"] = kwargs.get("size") or sampling["video_size"]
        super().__init__(**kwargs)
        self.num_frames: Any = sampling.get("max_frames", kwargs.get("num_frames"))
        self.fps: Any = sampling.get("fps", kwargs.get("fps"))

    def _clips(self, clips: list[list[Pixels]], settings: dict[str, Any]) -> dict[str, Any]:
        side = settings["max_image_size"]["longest_edge"]
        square = SizeDict(height=side, width=side)
        done = [
            self._stack(clip, settings, self._first_size(clip[0], settings["size"]), square)
            for clip in clips
        ]
        longest = max(len(clip) for clip in done)
        pixels = torch.zeros(len(done), longest, *done[0].shape[1:])
        mask = torch.zeros(len(done), longest, *done[0].shape[2:], dtype=torch.int64)
        for row, clip in enumerate(done):
            pixels[row, : len(clip)] = clip
            mask[row] = 1  # as transformers has it: frames that only fill up are not masked
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def _first_size(self, frame: Pixels, size: SizeDict) -> SizeDict:
        if not size.longest_edge:
            return size
        height, width = frame.shape[1:]
        edge = min(self._LARGEST, size.longest_edge)
        if width >= height:
            height, width = int(edge * height / width), edge
            return SizeDict(height=max(1, height + height % 2), width=width)
        height, width = edge, int(edge * width / height)
        return SizeDict(height=height, width=max(1, width + width % 2))


class NoVideoProcessor(PortableVideoProcessor):
    """Stands where a family has a video processor that only torchvision can run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings

    def to_dict(self) -> dict[str, Any]:
        """The settings as they were read, so that saving a processor loses none."""
        return dict(self._settings)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Refuse.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            "the video processor of this model needs torchvision, which is not installed; "
            "images work without"
        )
