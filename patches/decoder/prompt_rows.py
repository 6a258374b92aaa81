"""The prompts of a prefill, row by row: where the question is, what cannot be shortened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.sequence.deepstack import in_loop
from vlmcompress.patches.sequence.placeholders import Located
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Reduction


def questions(
    unmasked: Tensor, images: Sequence[Located], plans: Sequence[ImagePlan]
) -> list[tuple[Tensor, int]]:
    """Per row the columns of the text after its last visual token, and its last column.

    Args:
        unmasked: [B, L] bool, on the CPU: columns of the prompts that may be attended to.
        images: of the prompts.
        plans: of the images.

    Raises:
        UnsupportedCallError: layers drop tokens of a prompt that ends with an image: they are
            ranked by the attention of what follows.
    """
    ends, cut = [-1] * len(unmasked), set()
    for image, plan in zip(images, plans, strict=True):
        if len(image.placeholders):
            ends[image.row] = max(ends[image.row], int(image.placeholders[-1]))
        if plan.schedule and not plan.late:
            cut.add(image.row)
    found = []
    for row, end in enumerate(ends):
        columns = unmasked[row].nonzero()[:, 0]
        last = int(columns[-1]) if len(columns) else unmasked.shape[1] - 1
        if last == end and row in cut:
            raise UnsupportedCallError(
                f"prompt {row} ends with an image, and decoder-stage methods rank by the question "
                "after it: put the question there, or use a projector-stage method"
            )
        found.append((columns[columns > end], last))
    return found


def check_rows(counts: Sequence[int], unmasked: Tensor) -> None:
    """A prompt of which nothing is left has no answer.

    Args:
        counts: per row, tokens that enter the decoder.
        unmasked: [B, L] bool, on the CPU: what was there.

    Raises:
        UnsupportedCallError: a row has lost all tokens.
    """
    for row, count in enumerate(counts):
        if count == 0 and bool(unmasked[row].any()):
            raise UnsupportedCallError(
                f"nothing of prompt {row} is left: it has no text, and all its visual tokens are "
                "dropped; add text, or give a budget that keeps some"
            )


def check_grid(method: Method, image: Located, plan: ImagePlan) -> None:
    """A method that asks for neighbours cannot do with parts of a frame.

    Raises:
        UnsupportedCallError: the attention mask leaves it only those.
    """
    whole = {(grid.h, grid.w) for grid in image.layout.parts}
    broken = any((grid.h, grid.w) not in whole for grid in image.open_layout.parts)
    if method.on_grid and image.unmasked is not None and broken:
        raise UnsupportedCallError(
            f"the attention mask closes a part of image {image.ordinal} of prompt {image.row}, and "
            f"{method.name} needs all tokens of a frame on their grid: close whole images or "
            "frames, or use another method"
        )


def place(
    arguments: Mapping[str, Any],
    images: Sequence[Located],
    kept: Sequence[Tensor],
    reductions: Sequence[Reduction | None],
) -> Tensor:
    """Embeddings [B, L, D] with merged features written at the place of each group.

    Not for a decoder that adds all features in its loop: it is given them there, and adds them to
    what the embeddings hold.
    """
    embeds: Tensor = arguments["inputs_embeds"]
    if in_loop(arguments) is not None or all(reduction is None for reduction in reductions):
        return embeds
    embeds = embeds.clone()
    for image, indices, reduction in zip(images, kept, reductions, strict=True):
        if reduction is not None:
            columns = image.columns.to(embeds.device)[indices]
            embeds[image.row, columns] = reduction.features.to(embeds)
    return embeds


def survivors_of(image: Located, encoded: Mapping[str, Encoded]) -> Survivors | None:
    """What a method before the projector left of an image; None without such a method."""
    pieces = []
    for modality, number in image.pieces:
        found = encoded[modality].survivors
        if found is None:
            return None
        pieces.append(found[number])
    return pieces[0] if len(pieces) == 1 else Survivors.join(pieces)


def open_survivors(image: Located, encoded: Mapping[str, Encoded]) -> Survivors | None:
    """Those that the attention mask leaves open."""
    found = survivors_of(image, encoded)
    if found is None or image.unmasked is None:
        return found
    return found.among(image.unmasked, image.layout)
