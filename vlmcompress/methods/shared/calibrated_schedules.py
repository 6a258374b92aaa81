"""Schedules given as the share of an image's tokens that enters each decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home
from vlmcompress.files.untrusted import read_json, short
from vlmcompress.methods.shared.schedules import check_cuts, check_reachable, falling, nearest

VERSION = 1
"""Format number of the files that `vlmcompress calibrate` writes."""

_LEAST = 1e-6  # stands for a share of 0, so that scaling reaches every budget


@dataclass(frozen=True)
class Calibrated:
    """What a file says that `vlmcompress calibrate` wrote."""

    shares: tuple[float, ...]
    """For each decoder layer; 1 for the first, never rising."""
    kappa: float | None
    """Steepness of the sigmoid that the shares follow, where they do."""

    def __post_init__(self) -> None:
        """Raise a ValueError about shares that are no schedule."""
        shares = self.shares
        if len(shares) < 2 or shares[0] != 1 or not all(0 <= share <= 1 for share in shares):
            raise ValueError("shares must be 1 for the first layer and in [0, 1] for all")
        if any(later > earlier for earlier, later in pairwise(shares)):
            raise ValueError("shares must not rise with the layer")
        if self.kappa is not None and not 0 < self.kappa < float("inf"):
            raise ValueError("kappa must be above 0")

    @classmethod
    def read(cls, path: str, kind: str, method: str, known: Sequence[str] = ()) -> Calibrated:
        """From a JSON file.

        Args:
            path: of the file.
            kind: what it must be a calibration of.
            method: whose option it is, for messages.
            known: what else could have been given.

        Raises:
            VLMCompressError: it is not there, not JSON, of another kind or version, or malformed.
        """
        how = f"write one for your model with `vlmcompress calibrate {kind}`"
        try:
            found = read_json(at_home(path))
            if found["kind"] != kind:
                raise ValueError(f"its kind is {short(found['kind'])}, not {kind!r}")
            if found["version"] != VERSION:
                raise ValueError(f"its version is {short(found['version'])}, not {VERSION}")
            shares = tuple(float(share) for share in found["shares"])
            kappa = found.get("kappa")
            return cls(shares, None if kappa is None else float(kappa))
        except OSError:
            names = f"neither {', '.join(known)} nor" if known else "not"
            raise VLMCompressError(
                f"{method}: table {path!r} is {names} a readable file: {how}"
            ) from None
        except KeyError as error:
            raise VLMCompressError(
                f"{method}: {path} is no schedule (it has no {error}): {how}"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise VLMCompressError(f"{method}: {path} is no schedule ({error}): {how}") from error


def check_depth(method: str, table: str | None, shares: Sequence[float], layers: int) -> None:
    """Raise unless `shares` are for a decoder of `layers`."""
    if len(shares) != layers:
        raise VLMCompressError(
            f"{method}: table {table!r} is for a decoder of {len(shares)} layers, this one has "
            f"{layers}"
        )


def scaled_cuts(cuts: Sequence[int], depth: int, layers: int) -> list[int]:
    """Cuts in a decoder of `depth` layers at the same shares of the depth of one of `layers`.

    Each is at least one layer after the one before; those that then fall outside are left out.
    """
    placed = [0]
    for cut in cuts:
        placed.append(max(round(cut * layers / depth), placed[-1] + 1))
    return [cut for cut in placed[1:] if cut < layers]


def stairs(cuts: Sequence[int], shares: Sequence[float], layers: int) -> tuple[float, ...]:
    """The share of each layer, where `shares[j]` holds from layer `cuts[j]` on."""
    steps = dict(zip(cuts, shares, strict=False))
    held = [1.0]
    for layer in range(1, layers):
        held.append(steps.get(layer, held[-1]))
    return tuple(held)


def published(
    method: str,
    counts: Mapping[int, int],
    of: tuple[int, int],
    layers: int,
    tokens: int,
    budget: float | None,
    *,
    earlier: str,
) -> dict[int, int]:
    """Schedule of a paper's counts, in proportion in another decoder and of other pictures.

    Args:
        method: its name, for messages.
        counts: layer -> tokens that enter it and all later ones, as published.
        of: layers and tokens that they were published for.
        layers: of the decoder.
        tokens: that enter the decoder.
        budget: true mean over layers; None for the published shares.
        earlier: what to use where the budget is too small, for messages.

    Raises:
        BudgetError: see `check_cuts` and `meet`.
    """
    depth, total = of
    check_cuts(method, [1], layers)
    shares = stairs(
        scaled_cuts(list(counts), depth, layers), [n / total for n in counts.values()], layers
    )
    if budget is None:
        return cut(shares, tokens)
    return meet(method, shares, tokens, budget, earlier=earlier)


def cut(shares: Sequence[float], tokens: int, scale: float = 1.0, least: int = 0) -> dict[int, int]:
    """Schedule of `shares`, scaled from the first cut on, in whole tokens.

    Args:
        shares: as in `Calibrated`.
        tokens: of the image.
        scale: factor of all shares but those of the layers that see all tokens.
        least: tokens that stay everywhere.
    """
    counts = {
        layer: max(least, round(scale * max(shares[layer], _LEAST) * tokens))
        for layer in range(_first(shares), len(shares))
    }
    return falling(counts, tokens)


def meet(
    method: str, shares: Sequence[float], tokens: int, budget: float, *, earlier: str
) -> dict[int, int]:
    """Schedule in proportion to `shares` whose true mean is as near to `budget` as they allow.

    At most half a token away, since one count changes at a time. Layers before the first cut see
    all tokens.

    Args:
        method: for messages.
        shares: as in `Calibrated`.
        tokens: of the image.
        budget: mean over layers.
        earlier: how the user of this method gets an earlier first cut.

    Raises:
        BudgetError: the layers before the first cut alone cost more.
    """
    if budget >= tokens:
        return {}
    check_reachable(method, _first(shares), len(shares), tokens, budget, earlier)
    highest = 1 / max(min(shares), _LEAST)
    return nearest(
        lambda scale: cut(shares, tokens, scale), len(shares), tokens, budget, (0.0, highest)
    )


def _first(shares: Sequence[float]) -> int:
    """The first layer that does not see all tokens; the depth where there is none."""
    return next((layer for layer, share in enumerate(shares) if share < 1), len(shares))
