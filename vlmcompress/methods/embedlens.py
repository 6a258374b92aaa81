"""EmbedLens: drops tokens that lie next to odd words of the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home
from vlmcompress.files.untrusted import read_json
from vlmcompress.methods.contracts.method import AskingSelector, share_kept
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.published_tables import published
from vlmcompress.ops.nearest_rows import nearest_rows
from vlmcompress.ops.questions import Asking
from vlmcompress.tokens import Grid, VisualTokens

PUBLISHED = Path(__file__).parent / "data" / "embedlens.json"
"""Name of a model -> its table."""

_HOW = "write one for your model with `vlmcompress calibrate embedlens`"


@dataclass(frozen=True)
class WordTable:
    """The words of one model that tokens without content lie next to."""

    origin: str
    """Where the ids are from: published, or calibrated with what."""
    words: int | None
    """Size of the vocabulary, where it is known."""
    sink: tuple[int, ...]
    dead: tuple[int, ...]

    @classmethod
    def read(cls, name: str) -> WordTable:
        """A published table by its name, or one from a JSON file.

        Raises:
            VLMCompressError: there is none, or it is no such table.
        """
        known = published(PUBLISHED)
        if name in known:
            return cls.parse(known[name])
        try:
            return cls.parse(read_json(at_home(name)))
        except OSError:
            raise VLMCompressError(
                f"embedlens: table {name!r} is neither {' nor '.join(known)} nor a readable "
                f"file: {_HOW}"
            ) from None
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise VLMCompressError(
                f"embedlens: {name} is no table of words ({error}): {_HOW}"
            ) from error

    @classmethod
    def parse(cls, found: Any) -> WordTable:
        """From what JSON holds."""
        sink, dead = ([int(number) for number in found[kind]] for kind in ("sink", "dead"))
        words = found.get("words")
        return cls(str(found["origin"]), words and int(words), tuple(sink), tuple(dead))


def write_table(
    path: str | Path, ids: Mapping[str, Sequence[int]], *, origin: str, words: int | None = None
) -> None:
    """Save a table for `EmbedLens(table=path)`.

    Args:
        path: of the JSON file.
        ids: the words under "sink" and "dead".
        origin: where they are from.
        words: size of the vocabulary.
    """
    table = WordTable.parse({"origin": origin, "words": words, **ids})
    Path(path).write_text(json.dumps(vars(table), indent=2) + "\n")


@dataclass(frozen=True)
class EmbedLens(AskingSelector):
    """Drop tokens that have a sink word or a dead word among their nearest words.

    Words are compared with projected features by cosine. Without a budget what is left are the
    alive tokens. With one, dead tokens go first, then sinks, then alive ones. Which words are dead
    or sinks differs from model to model. Official code: EIT-NLP/EmbedLens.

    Deviations:
        The budget is ours, and so is the order inside a class: by the cosine to the nearest word,
        the lowest goes first. A token next to words of both classes is dead.
        Tokens enter at the first decoder layer; the paper can let them in at a later one,
        as "embedlens+inject" does.
    """

    name: ClassVar[str] = "embedlens"
    paper: ClassVar[str] = "arXiv 2603.00510"
    summary: ClassVar[str] = "drops what lies next to odd words"
    needs: ClassVar[frozenset[str]] = frozenset({"vocabulary"})
    adaptive: ClassVar[bool] = True

    table: str | None = None
    """The ids of the model: "llava-1.5-7b", or a file that calibration wrote. There is no
    default, since a model does not say which it is."""
    nearest: int = 3
    """Words that a token is compared with."""

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)")
        if self.table is None:
            names = " or ".join(published(PUBLISHED))
            raise VLMCompressError(
                "embedlens needs the ids of dead and sink words of the model: "
                f"give table={names}, or {_HOW}"
            )
        _ = self._table

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """All tokens without a budget, of which `select` drops those that are not alive."""
        return len(grid) if budget is None else share_kept(self.name, grid, budget)

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending; only the alive ones, at least one, where all are asked for."""
        classes, likeness = self._classes(tokens)
        if count >= len(classes):
            count = max(1, int((yield (classes == 0).sum())))
        by_likeness = likeness.argsort(descending=True, stable=True)
        order = by_likeness[classes[by_likeness].argsort(stable=True)]
        return order[: max(0, count)].sort().values

    @cached_property
    def _table(self) -> WordTable:
        """What `table` says, read once."""
        assert self.table is not None
        return WordTable.read(self.table)

    def _classes(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """[N] 0 alive, 1 sink, 2 dead, and [N] cosine to the nearest word."""
        table, words = self._table, tokens.vocabulary
        if words is None:
            raise VLMCompressError("embedlens needs the vocabulary of the model, got none")
        known = len(words) if table.words is None else table.words
        if known != len(words) or max((*table.sink, *table.dead), default=0) >= len(words):
            raise VLMCompressError(
                f"embedlens: table {self.table!r} is for another vocabulary than the "
                f"{len(words)} words of this model: {_HOW}"
            )
        cosines, ids = nearest_rows(tokens.features, words, self.nearest)
        classes = torch.zeros_like(ids[:, 0])
        for kind, members in ((1, table.sink), (2, table.dead)):
            close = torch.isin(ids, torch.tensor(members, dtype=torch.long, device=ids.device))
            classes[close.any(1)] = kind
        return classes, cosines[:, 0]
