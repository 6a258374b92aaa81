"""Images and videos from files, as pixels."""

from vlmcompress.media.images import read_image
from vlmcompress.media.video import Video, read_video

__all__ = ["Video", "read_image", "read_video"]
