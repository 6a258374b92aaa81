"""Vectors of pages and queries, of fewer tokens where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor, nn

from vlmcompress.api import Compression, compress
from vlmcompress.arguments import check_count, check_words
from vlmcompress.budget.budget import Budget
from vlmcompress.errors import MediaError, UnsupportedModelError, VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.media.given import media_of
from vlmcompress.media.video import Video
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.families.registry import RETRIEVERS, family_of
from vlmcompress.report.report import ImageReport
from vlmcompress.retrieval.pools import Pool, parse_pool
from vlmcompress.retrieval.vectors import TEXT, PageVectors
from vlmcompress.tokens import Grid, Layout

Picture = Image.Image | str | Path
Vectors = list[Tensor]
_TOKENS = ("all", "visual")


@overload
def embed(
    model: nn.Module,
    processor: Any,
    images: Sequence[Picture] | None = None,
    texts: Sequence[str] | None = None,
    method: str | Method | Sequence[Method] | None = None,
    budget: int | float | str | Budget | None = None,
    *,
    pool: str | Pool | None = None,
    tokens: str = "all",
    batch_size: int = 8,
    **options: Any,
) -> Vectors: ...


@overload
def embed(
    model: nn.Module,
    processor: Any,
    images: Sequence[Picture] | None = None,
    texts: Sequence[str] | None = None,
    method: str | Method | Sequence[Method] | None = None,
    budget: int | float | str | Budget | None = None,
    *,
    pool: Sequence[str | Pool | None],
    tokens: str = "all",
    batch_size: int = 8,
    **options: Any,
) -> tuple[Vectors, ...]: ...


def embed(
    model: nn.Module,
    processor: Any,
    images: Sequence[Picture] | None = None,
    texts: Sequence[str] | None = None,
    method: str | Method | Sequence[Method] | None = None,
    budget: int | float | str | Budget | None = None,
    *,
    pool: str | Pool | Sequence[str | Pool | None] | None = None,
    tokens: str = "all",
    batch_size: int = 8,
    **options: Any,
) -> Vectors | tuple[Vectors, ...]:
    """The vectors of pages or queries, one a token, as the model gives them (of unit length).

    Visual tokens of pages can be reduced before the decoder, inside it (`method`, `budget`), after
    it (`pool`), or both. A model that is compressed already is taken as it is. Nothing is padded.

    Args:
        model: `ColPaliForRetrieval`, `ColQwen2ForRetrieval` or `ColModernVBertForRetrieval`, in
            evaluation mode.
        processor: its own.
        images: pages as PIL images or paths.
        texts: queries, instead of pages; they are never reduced.
        method: as for `compress`; None keeps all tokens.
        budget: as for `compress`.
        pool: what makes fewer vectors of those of a page: "global", "tiles", "rows(window=3)",
            "spatial(size=2)", "hierarchical(factor=2)" (or count=, distance=). Several, None among
            them for all vectors, give as many lists from one run of the model.
        tokens: "all", or "visual" for the visual tokens of a page without those of the prompt.
        batch_size: pages or queries that the model is given at once.
        **options: fields of the method.

    Returns:
        [n_i, d] of each page or query, on the model's device, in its dtype; a tuple of such lists
        where `pool` is several.

    Raises:
        VLMCompressError: neither or both of images and texts, another model, and what `compress`
            raises.
    """
    if (images is None) == (texts is None):
        raise VLMCompressError("give either images= (pages) or texts= (queries)")
    items = texts if images is None else images
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise VLMCompressError(
            f"give a list of pages or of queries, also for one, got {short(items)}"
        )
    if tokens not in _TOKENS:
        raise VLMCompressError(f"tokens={tokens!r} is not possible: give {' or '.join(_TOKENS)}")
    check_count("batch_size", batch_size)
    several = isinstance(pool, list | tuple)
    pools = [parse_pool(one) for one in _listed(pool)]
    if not pools:
        raise VLMCompressError("no pool is given: leave pool= out for all vectors")
    _check_model(model)
    _check_processor(processor)
    if texts is not None:
        for name, value in {"method": method, "budget": budget, "pool": pool, **options}.items():
            if value is not None:
                raise VLMCompressError(f"{name} is for pages: queries are embedded whole")
        for number, text in enumerate(texts):
            check_words(f"query {number}", text)
        return [page.vectors for page in _pages(model, processor, texts, batch_size, None)]
    assert images is not None
    found: tuple[Vectors, ...] = tuple([] for _ in pools)
    with _reducing(model, method, budget, options) as compression:
        for page in _pages(model, processor, images, batch_size, compression):
            part = page.visual if tokens == "visual" else page
            for vectors, one in zip(found, pools, strict=True):
                vectors.append(part.vectors if one is None else one.pool(part))
    return found if several else found[0]


def _listed(pool: str | Pool | Sequence[str | Pool | None] | None) -> Sequence[str | Pool | None]:
    return pool if isinstance(pool, list | tuple) else [pool]  # type: ignore[list-item]


def _check_model(model: Any) -> None:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in RETRIEVERS.names():
        raise UnsupportedModelError(
            f"{type(model).__name__} gives no vectors to search with: embed takes a model of type "
            f"{', '.join(RETRIEVERS.names())}"
        )


def _check_processor(processor: Any) -> None:
    if not hasattr(processor, "process_images") or not hasattr(processor, "process_queries"):
        raise VLMCompressError(
            f"{type(processor).__name__} is no processor of pages and queries: give the model's "
            "own, as vlmcompress.load does"
        )


@contextmanager
def _reducing(
    model: nn.Module, method: Any, budget: Any, options: dict[str, Any]
) -> Iterator[Compression]:
    """The model with a method on it, or with the one that is on it already."""
    if engine_of(model) is not None and method is None:
        yield Compression.of(model)
        return
    if method is None and (budget is not None or options):
        raise VLMCompressError("a budget needs a method: give method=, for example 'divprune'")
    with compress(model, "full" if method is None else method, budget, **options) as compression:
        yield compression


def _pages(
    model: Any,
    processor: Any,
    items: Sequence[Any],
    batch_size: int,
    compression: Compression | None,
) -> Iterator[PageVectors]:
    """What the model makes of each item; pages where a compression reports on them."""
    for start in range(0, len(items), batch_size):
        some = list(items[start : start + batch_size])
        try:
            if compression is None:
                inputs = processor.process_queries(text=some)
            else:
                inputs = processor.process_images(images=list(map(_opened, some)))
        except VLMCompressError:
            raise
        except ValueError as error:
            raise VLMCompressError(f"the model's processor refuses the input: {error}") from error
        inputs.pop("labels", None)  # some processors make them even where nothing is learnt
        inputs = inputs.to(model.device)
        with torch.no_grad():
            output = model(**inputs).embeddings
        images = {image.row: image for image in compression.report().images} if compression else {}
        token = family_of(model).placeholders(model)["image"]
        for row, ids in enumerate(inputs["input_ids"]):
            ids = ids[inputs["attention_mask"][row].bool()]
            yield _page(output[row], ids, token, images.get(row))


def _opened(picture: Picture) -> Image.Image:
    (media,) = media_of([picture])
    if isinstance(media, Video):
        raise MediaError(f"{short(picture)} is a clip: pages are pictures")
    return media


def _page(output: Tensor, ids: Tensor, token: int, image: ImageReport | None) -> PageVectors:
    """The vectors of a prompt and what they are of.

    Args:
        output: [L, d] of its tokens that are left; rows of padding are zero.
        ids: [T] of all its tokens.
        token: the placeholder of visual tokens.
        image: what was done to its page.
    """
    vectors = output[output.any(-1)]
    places = torch.full_like(ids, TEXT)
    if image is None:
        return PageVectors(vectors, places, Layout(()))
    kept = image.cuts[max(image.cuts)] if image.cuts else image.kept
    visual = torch.eq(ids, token).nonzero()[:, 0]
    places[visual] = torch.arange(len(visual), device=ids.device)
    stays = places == TEXT
    stays[visual[kept]] = True
    return PageVectors(vectors, places[stays], Layout.of(*(Grid(*part) for part in image.parts)))
