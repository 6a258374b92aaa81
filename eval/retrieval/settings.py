"""What is compared: all vectors, fewer of them by the ways that there are, and two stages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    where: str
    """"full", "before the decoder", "inside it", "after it", "two stages"."""
    method: str | None = None
    budget: str | None = None
    pool: str | None = None
    coarse: str | None = None
    """The pool that candidates are chosen by."""
    tokens: str = "visual"

    @property
    def run(self) -> tuple[str | None, str | None, str]:
        """Settings of one run share the vectors that the model gives."""
        return self.method, self.budget, self.tokens

    @property
    def name(self) -> str:
        """As the table calls it."""
        parts = [self.method and f"{self.method} at {self.budget}", self.pool]
        parts += [self.coarse and f"{self.coarse}, then all vectors"]
        return " + ".join(filter(None, parts)) or f"{self.tokens} tokens"


CANDIDATES = 30
"""Pages that the first of two stages leaves."""
FULL = Setting("full")
_SHARES = ("50%", "25%", "10%")
_FACTORS = (2, 4, 10)
_BY_PLACE = ("spatial(size=2)", "spatial(size=3)", "rows", "rows(window=3)", "global")
_COARSE = ("hierarchical(factor=4)", "hierarchical(factor=10)", "spatial(size=2)", "rows", "global")

SETTINGS = (
    FULL,
    Setting("full", tokens="all"),
    *(Setting("before the decoder", "divprune", share) for share in _SHARES),
    *(Setting("before the decoder", method, "25%") for method in ("pool", "random")),
    Setting("inside it", "fastv", "60%"),
    Setting("inside it", "pyramiddrop", "50%"),
    *(Setting("after it", pool=f"hierarchical(factor={factor})") for factor in _FACTORS),
    *(Setting("after it", pool=pool) for pool in _BY_PLACE),
    Setting("before and after it", "divprune", "50%", pool="hierarchical(factor=2)"),
    Setting("before and after it", "divprune", "50%", pool="hierarchical(factor=5)"),
    *(Setting("two stages", coarse=coarse) for coarse in _COARSE),
)
