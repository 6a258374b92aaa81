"""SmolVLM: as Idefics3; the frames of a clip are images of their own."""

from __future__ import annotations

from vlmcompress.patches.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """`SmolVLMForConditionalGeneration`.

    Its processor turns a clip into one image for each frame, with timestamps between them.
    """

    name = "smolvlm"
    class_name = "SmolVLMForConditionalGeneration"
    video = True
