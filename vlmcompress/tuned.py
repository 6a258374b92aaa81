"""What `vlmcompress tune` found for a model: a profile, and what it takes for a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmcompress.auto import MethodChoice, auto_method
from vlmcompress.budget.budget import Budget
from vlmcompress.defaults import AUTO
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.files import at_home
from vlmcompress.files.untrusted import read_json, said, short
from vlmcompress.patches.families.parts import ModelParts

KIND, FORMAT = "tuning", 1
_PROBES = 16
"""Weights that are compared, of two models of one shape."""
_SAME = 0.02
"""Share by which the same weight may differ, which half precision rounds."""


def identity(parts: ModelParts) -> dict[str, Any]:
    """What a profile knows a model by: its type, its depth, and a few of its weights.

    Norms and biases stay floating-point numbers where the other weights are quantized, and adapters
    such as LoRA add none. A fine-tuned model whose norms hardly moved passes for the one it came
    from.
    """
    vectors = [w for w in parts.model.parameters() if w.dim() == 1 and w.is_floating_point()]
    found: dict[str, Any] = {"type": parts.family.name, "layers": len(parts.layers)}
    if vectors and not any(vector.is_meta for vector in vectors):
        places = torch.linspace(0, len(vectors) - 1, min(_PROBES, len(vectors))).round().int()
        picked = [vectors[place] for place in places.tolist()]
        means = [float(one.detach().double().abs().mean()) for one in picked]
        found["weights"] = [float(f"{mean:.6g}") for mean in means]
    return found


@dataclass(frozen=True)
class Tuned:
    """A profile as it was read.

    Attributes:
        path: for messages.
        model: of `identity`, and the name that it was tuned under.
        budgets: budget -> what was found there, best first; see `vlmcompress.tuning.profile`.
    """

    path: str
    model: Mapping[str, Any]
    budgets: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: ProfileLike) -> Tuned:
        """The profile in a file; one that was read is given back.

        Raises:
            VLMCompressError: the file cannot be read, or is no such profile.
        """
        if isinstance(path, Tuned):
            return path
        if not isinstance(path, str | Path):
            raise VLMCompressError(
                f"a profile is the name of a file or what tune() gave, not {short(path)}"
            )
        file = at_home(path)
        try:
            content = read_json(file)
        except OSError as error:
            raise VLMCompressError(
                f"cannot read profile {str(path)!r}: {error.strerror or error}"
            ) from error
        except VLMCompressError as error:
            raise VLMCompressError(f"profile {str(path)!r} {said(error)}") from error
        if not _is_profile(content):
            raise VLMCompressError(
                f"{str(path)!r} is no profile of this version: vlmcompress tune writes one"
            )
        return cls(str(path), content["model"], content["budgets"])

    def check_model(self, now: Mapping[str, Any]) -> None:
        """Raise an UnsupportedModelError unless the profile was made with this model.

        Args:
            now: of `identity`; weights are compared where both have some.
        """
        for key in ("type", "layers"):
            if key in now and self.model.get(key) != now[key]:
                raise UnsupportedModelError(
                    f"profile {self.path!r} is of another model, {self.model.get('name')}: {key} "
                    f"{self.model.get(key)} there, {now[key]} here"
                )
        before, here = self.model.get("weights"), now.get("weights")
        if before is not None and here is not None and not _close(before, here):
            raise UnsupportedModelError(
                f"profile {self.path!r} is of other weights, those of {self.model.get('name')}: "
                "tune this model with vlmcompress tune"
            )

    def nearest(self, budget: Budget | None, tokens: int | None = None) -> str:
        """The budget of the profile that is asked for, or the nearest to it as a share.

        Args:
            budget: what is asked for.
            tokens: of an image, where the model gives all images as many.

        Raises:
            BudgetError: there is none, or it is a cost, or cannot be compared with those known.
        """
        known = ", ".join(self.budgets)
        if budget is None:
            raise BudgetError(f"{AUTO} needs a budget; profile {self.path!r} knows {known}")
        if str(budget) in self.budgets:
            return str(budget)
        asked = _share(budget, tokens)
        shares = {name: _share(Budget.parse(name), tokens) for name in self.budgets}
        apart = {
            name: abs(math.log(share / asked)) for name, share in shares.items() if share and asked
        }
        if not apart:
            raise BudgetError(
                f"budget {budget} cannot be compared with those of profile {self.path!r}: "
                f"give one of {known}"
            )
        return min(apart, key=lambda name: apart[name])

    def choice(self, parts: ModelParts, budget: Budget | None) -> MethodChoice:
        """What to take for a model and a budget, and how sure that is.

        Raises:
            UnsupportedModelError: the profile is of another model.
            BudgetError: see `nearest`.
        """
        self.check_model(identity(parts))
        grid = parts.family.fixed_grid(parts.model)
        name = self.nearest(budget, None if grid is None else len(grid))
        row = self.rows(name)[0]
        reason = f"{self.tuned_at(name, budget)}: {how_sure(self.budgets[name])}"
        return MethodChoice(row["method"], reason)

    def tuned_at(self, name: str, budget: Budget | None) -> str:
        """Which budget of the profile was taken, and for which it stands if that is another.

        Args:
            name: of `nearest`.
            budget: what was asked for.
        """
        far = "" if name == str(budget) else f", the nearest to {budget} in the profile"
        return f"tuned at {name}{far}"

    def __str__(self) -> str:
        return "\n".join(f"{name}: {how_sure(found)}" for name, found in self.budgets.items())

    def rows(self, budget: str) -> Sequence[Mapping[str, Any]]:
        """The candidates at one of the budgets, the one that is taken first."""
        rows: Sequence[Mapping[str, Any]] = self.budgets[budget]["rows"]
        return rows


ProfileLike = str | Path | Tuned
"""The file of a profile, or what was read of it."""


def asked_for(method: Any, profile: ProfileLike | None) -> Any:
    """The method that is named, or "auto" where a profile takes its place.

    Whatever takes one method and a profile asks here, so that all refuse alike, before anything is
    loaded.

    Args:
        method: as it was given; None where none was.
        profile: see `Tuned.read`; None where none was given.

    Raises:
        CompositionError: both are given.
        VLMCompressError: the profile cannot be read.
    """
    if profile is None:
        return method
    if method is not None and method != AUTO:
        named = method if isinstance(method, str) else "methods that are named"
        raise CompositionError(f'a profile chooses the method: give it with "{AUTO}", not {named}')
    Tuned.read(profile)
    return AUTO


def all_asked_for(methods: Sequence[Any], profile: ProfileLike | None) -> list[Any]:
    """Several methods, and behind them "auto" for what a profile takes unless it is among them.

    Raises:
        VLMCompressError: the profile cannot be read.
    """
    taken = asked_for(None, profile)
    return [*methods, *(() if taken is None or taken in methods else (taken,))]


def choice_for(
    parts: ModelParts, budget: Budget | None, profile: ProfileLike | None
) -> MethodChoice:
    """What "auto" takes: what the profile says, or without one what was measured elsewhere.

    Raises:
        VLMCompressError: see `Tuned.choice` and `vlmcompress.auto.auto_method`.
    """
    if profile is None:
        return auto_method(parts, budget)
    return Tuned.read(profile).choice(parts, budget)


def check_fits(profile: ProfileLike | None, model: Any) -> None:
    """Raise an UnsupportedModelError where a profile is given and is of another model."""
    if profile is not None:
        Tuned.read(profile).check_model(identity(ModelParts.of(model)))


def how_sure(found: Mapping[str, Any]) -> str:
    """In one line: how often the method that is taken says what the whole model says.

    Args:
        found: what a profile holds for a budget.
    """
    row, others = found["rows"][0], found["tied"]
    low, high = row["agreement_interval"]
    named = ", ".join(others) or "none"
    tied = f"of the {found['last']} left at the end not told apart from it: {named}"
    if found["last"] == 1:
        tied = "no other was left at the end"
    warned = "".join(f"; {warning}" for warning in found["warnings"])
    return (
        f"{row['method']} says what the whole model says in {row['agreement']:.1%} "
        f"({100 * low:.1f} to {100 * high:.1f}) of {row['n']} answers, KL {row['kl']:.3g}; "
        f"{tied}{warned}"
    )


def _share(budget: Budget, tokens: int | None) -> float | None:
    """Of the tokens; None where nobody knows of how many."""
    if budget.unit == "percent":
        return budget.amount / 100
    counts = budget.unit == "tokens" and not budget.per_frame and tokens is not None
    return min(1.0, budget.amount / tokens) if counts and tokens else None


def _close(before: Sequence[float], here: Sequence[float]) -> bool:
    if len(before) != len(here):
        return False
    return all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(before, here, strict=True))


_NUMBER = (int, float)
_ROW: Mapping[str, Any] = {
    "method": str,
    "agreement": _NUMBER,
    "agreement_interval": list,
    "kl": _NUMBER,
    "n": int,
}


def _is_profile(content: Any) -> bool:
    """Whether it has what is looked at, each of the right kind."""
    if not isinstance(content, dict):
        return False
    if (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        return False
    model, budgets = content.get("model"), content.get("budgets")
    if not isinstance(model, dict) or not isinstance(budgets, dict) or not budgets:
        return False
    return _are_numbers(model.get("weights", [])) and all(map(_is_found, budgets.values()))


def _is_found(found: Any) -> bool:
    lists = isinstance(found, dict) and all(
        isinstance(found.get(key), list) for key in ("rows", "tied", "warnings")
    )
    lists = lists and isinstance(found.get("last"), int)
    return lists and bool(found["rows"]) and all(map(_is_row, found["rows"]))


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    typed = all(isinstance(row.get(name), kind) for name, kind in _ROW.items())
    return typed and len(row["agreement_interval"]) == 2 and _are_numbers(row["agreement_interval"])


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, _NUMBER) for value in values)
