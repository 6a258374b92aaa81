"""What a server or a request asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.installable import POSITIONS
from vlmcompress.methods.composition.spec import parse
from vlmcompress.serving.architectures import KEY
from vlmcompress.version import __version__

_OF_REQUESTS = ("method", "budget")


def refuse_time(budget: Budget | None) -> None:
    """Raise a BudgetError about a budget in milliseconds."""
    if budget is not None and budget.unit == "ms":
        raise BudgetError(
            f"budget {budget}: a server has no time that holds for every load; give a count, a "
            'share such as "25%", or "0.4 flops"'
        )


@dataclass(frozen=True)
class Settings:
    """What is done with images and clips."""

    method: str
    budget: str | None = None
    """As `Budget` writes it."""
    positions: str = "keep"

    @classmethod
    def of_server(cls, config: Any) -> Settings:
        """The settings of a server.

        Args:
            config: of the model, with what `--hf-overrides` added.

        Raises:
            VLMCompressError: there are none, or they are not what settings look like.
        """
        given = getattr(config, KEY, None)
        if given is None:
            raise VLMCompressError(
                f'a pruning model needs settings: give "{KEY}": {{"method": ...}} in hf_overrides, '
                "or start it with `vlmcompress serve`"
            )
        return cls(method="")._with(given, tuple(field.name for field in fields(cls)))

    def for_request(self, given: Any) -> Settings:
        """With what a request asks for; positions are the server's.

        Raises:
            VLMCompressError: it asks for something else than a method or a budget.
        """
        if given is None:
            return self
        asked = self._with(given, _OF_REQUESTS)
        methods = parse(asked.method).methods
        if "budget" not in given and not all(method.takes_budget for method in methods):
            return replace(asked, budget=None)  # "full" has none, whatever the server's is
        return asked

    def _with(self, given: Any, allowed: tuple[str, ...]) -> Settings:
        possible = f"possible: {', '.join(allowed)}"
        if not isinstance(given, Mapping):
            raise VLMCompressError(f"{KEY} must be an object, got {short(repr(given))}; {possible}")
        for name, value in given.items():
            if name not in allowed:
                raise VLMCompressError(f"{KEY} has no setting {short(str(name))}; {possible}")
            if name != "budget" and not isinstance(value, str):
                raise VLMCompressError(f"{KEY}: {name} must be text, got {short(repr(value))}")
        changed = dict(given)
        if changed.get("budget") is not None:
            changed["budget"] = str(Budget.parse(changed["budget"]))
        found = replace(self, **changed)
        if not found.method:
            raise VLMCompressError(f"{KEY} names no method")
        if found.positions not in POSITIONS:
            raise VLMCompressError(
                f"{KEY}: positions={short(found.positions)} is not possible: give "
                f"{' or '.join(POSITIONS)}"
            )
        return found

    def __str__(self) -> str:
        budget = "its own budget" if self.budget is None else f"budget {self.budget}"
        return f"{self.method}, {budget}, positions {self.positions}"

    def identity(self, words: tuple[int, ...]) -> str:
        """All that decides what becomes of an image, for the key of caches.

        The version is part of it, since caches outside of the server outlive it.

        Args:
            words: token ids of the question, where the method looks at it.
        """
        return json.dumps([__version__, asdict(self), words], sort_keys=True)

    @classmethod
    def of_identity(cls, text: str) -> tuple[Settings, tuple[int, ...]]:
        """The settings and words that `identity` was made of."""
        _, given, words = json.loads(text)
        return cls(**given), tuple(words)
