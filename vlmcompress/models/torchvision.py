"""Whether torchvision is there, asked before transformers is, whose classes hide why it is not."""

from __future__ import annotations

from vlmcompress.errors import UnsupportedModelError


def check_torchvision() -> bool:
    """Whether torchvision is installed.

    Raises:
        UnsupportedModelError: it is installed but does not import.
    """
    from transformers.utils.import_utils import is_torchvision_available

    if not is_torchvision_available():
        return False
    try:
        import torchvision  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except Exception as error:
        # Typical: a build for another torch. transformers takes it for usable and breaks later.
        raise UnsupportedModelError(
            f"torchvision is installed but does not import ({error}): "
            "install the build that goes with this torch, or uninstall it"
        ) from error
    return True
