"""The settings of the page as they stand in its address, so that a link shows the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmcompress import defaults

MOST_METHODS = 3
MAX_QUESTION = 500
"""Letters."""


@dataclass(frozen=True)
class PageSettings:
    """What a visitor chose."""

    sample: str | None
    question: str
    methods: tuple[str, ...]
    budget: int
    """In percent of the visual tokens."""

    @classmethod
    def from_address(
        cls, query: Mapping[str, str], samples: Mapping[str, str], methods: tuple[str, ...]
    ) -> PageSettings:
        """What the address says; what it does not say, or says wrongly, is as at first.

        Args:
            query: of the address.
            samples: names of samples and the question about each.
            methods: names that are known, "auto" among them where there is a profile.
        """
        sample = query.get("sample", "")
        sample = sample if sample in samples else next(iter(samples))
        named = [one for one in query.get("methods", "").split(",") if _known(one, methods)]
        first = (defaults.AUTO, defaults.METHOD, "fastv", "pyramiddrop")
        text = query.get("budget", "")
        percent = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 50
        return cls(
            sample,
            query.get("question", "")[:MAX_QUESTION] or samples[sample],
            tuple((named or [one for one in first if one in methods])[:MOST_METHODS]),
            min(100, max(1, percent)),
        )


def _known(spec: str, methods: tuple[str, ...]) -> bool:
    """Whether all methods of a composition are known, without options."""
    return bool(spec) and all(part in methods for part in spec.split("+"))


ADDRESS = """(sample, question, methods, budget) => {
  const query = new URLSearchParams(window.location.search);
  const now = {sample: sample || "", question, methods: methods.join(","), budget: String(budget)};
  for (const [name, value] of Object.entries(now)) {
    if (value) { query.set(name, value); } else { query.delete(name); }
  }
  window.history.replaceState(null, "", "?" + query.toString());
  return [sample, question, methods, budget];
}"""
"""JavaScript that writes the settings into the address."""
