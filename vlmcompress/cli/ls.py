"""`vlmcompress ls`: what there is."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Annotated, Any

import typer

from vlmcompress.cli.common import one_line_errors
from vlmcompress.cli.tables import paragraph, texts

_STATES = """A folder or a Hugging Face id of a type that is not refused works as well. tested: all
laws hold on this transformers. by structure: what is needed is looked for in the model itself."""


_AUTO = "auto takes those that were the most accurate for the model and the budget."


class Listing(str, Enum):
    """Things that can be listed."""

    methods = "methods"
    models = "models"


@one_line_errors
def ls(
    what: Annotated[Listing, typer.Argument(help="What to list.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the methods, or the built-in models and the supported model families.

    What other installed packages add is among them.

    \b
    Examples:
      vlmcompress ls methods
      vlmcompress ls models --json
    """
    if what is Listing.methods:
        methods = _methods()
        typer.echo(
            json.dumps(methods, indent=2, default=str) if as_json else _methods_text(methods)
        )
    else:
        models = _models()
        typer.echo(json.dumps(models, indent=2) if as_json else _models_text(models))


def _methods() -> list[dict[str, Any]]:
    from vlmcompress.methods import list_methods

    return [
        {
            "name": info.name,
            "stages": sorted(info.stages),
            "needs": sorted(info.needs),
            "paper": info.paper,
            "summary": info.summary,
            "options": dict(info.options),
            "package": info.package,
        }
        for info in list_methods()
    ]


def _models() -> dict[str, list[dict[str, Any]]]:
    from vlmcompress.api import list_models
    from vlmcompress.models.names import ASSETS, BUILT_IN
    from vlmcompress.patches.families.registry import FAMILIES

    return {
        "built_in": [
            {"name": name, "folder": str(ASSETS / folder)} for name, folder in BUILT_IN.items()
        ],
        "families": [
            {**dataclasses.asdict(info), "package": FAMILIES.package_of(info.name)}
            for info in list_models()
        ],
    }


def _methods_text(methods: list[dict[str, Any]]) -> str:
    rows = [
        [
            method["name"],
            "+".join(method["stages"]),
            method["summary"],
            ", ".join(f"{name}={value}" for name, value in method["options"].items()) or "-",
            _with_package(method["paper"], method),
        ]
        for method in methods
    ]
    table = texts(["method", "stage", "what it does", "options", "paper"], rows)
    return f"{table}\n\n{paragraph(_AUTO)}"


def _models_text(models: dict[str, list[dict[str, Any]]]) -> str:
    built_in = texts(
        ["built in", "folder"], [[model["name"], model["folder"]] for model in models["built_in"]]
    )
    families = texts(
        ["model type", "class", "stages", "media", "state"],
        [
            [
                family["name"],
                ", ".join(family["classes"]),
                ", ".join(family["stages"]) or "-",
                " ".join(media for media in ("images", "video") if family[media]) or "-",
                _with_package(": ".join(filter(None, (family["state"], family["reason"]))), family),
            ]
            for family in models["families"]
        ],
    )
    return f"{built_in}\n\n{families}\n\n{paragraph(_STATES)}"


def _with_package(text: str, entry: dict[str, Any]) -> str:
    """The last cell of a row, with the other package that the row is from."""
    return text if entry["package"] is None else f"{text}, from the package {entry['package']}"
