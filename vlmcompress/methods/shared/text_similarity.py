"""How near the words of the instruction are to each token."""

from __future__ import annotations

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.similarity import cosines
from vlmcompress.tokens import VisualTokens


def text_cosine(name: str, tokens: VisualTokens) -> Tensor:
    """[T, N] float32: cosine of each embedded word with each token.

    Args:
        name: of the method, for messages.
        tokens: with their text.

    Raises:
        VLMCompressError: no text was collected, it is empty, its embeddings are of another width
            than the features, or one of either is not finite.
    """
    text, features = tokens.text, tokens.features
    if text is None:
        raise VLMCompressError(f"{name} needs text, these tokens have none")
    if len(text) == 0:
        raise VLMCompressError(f"{name} needs an instruction of at least one word, got none")
    if text.shape[1:] != features.shape[1:]:
        raise VLMCompressError(
            f"{name} needs text of [T, {features.shape[-1]}] like the features, "
            f"got {tuple(text.shape)}"
        )
    return cosines(text.to(features.device), features)
