"""`vlmcompress ls`: what there is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from vlmcompress.cli import complete
from vlmcompress.cli.common import one_line_errors
from vlmcompress.cli.tables import paragraph, texts
from vlmcompress.errors import VLMCompressError

_STATES = """A folder or a Hugging Face id of a type that is not refused works as well. tested: all
laws hold on this transformers. by structure: what is needed is looked for in the model itself."""


_AUTO = "auto takes those that were the most accurate for the model and the budget."


class Listing(str, Enum):
    """Things that can be listed."""

    methods = "methods"
    models = "models"


class Stage(str, Enum):
    """Where a method acts."""

    pixels = "pixels"
    encoder = "encoder"
    projector = "projector"
    decoder = "decoder"


StageName = Annotated[
    Stage | None, typer.Option("--stage", help="Only methods that can act there.")
]
FamilyName = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="MODEL_TYPE",
        autocompletion=complete.families,
        help="Only methods that can run on models of this type.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@one_line_errors
def ls(
    what: Annotated[Listing, typer.Argument(help="What to list.", show_default=False)],
    stage: StageName = None,
    family: FamilyName = None,
    as_json: Json = False,
) -> None:
    """List the methods, or the built-in models and the supported model families.

    What other installed packages add is among them.

    \b
    Examples:
      vlmcompress ls methods
      vlmcompress ls methods --stage decoder
      vlmcompress ls methods --family qwen2_5_vl
      vlmcompress ls models --json
    """
    if what is Listing.methods:
        fits = _fits(stage, family)
        methods = [method for method in _methods() if fits(method)]
        typer.echo(
            json.dumps(methods, indent=2, default=str) if as_json else _methods_text(methods)
        )
    elif stage is not None or family is not None:
        raise VLMCompressError("--stage and --family are for methods, not for models")
    else:
        models = _models()
        typer.echo(json.dumps(models, indent=2) if as_json else _models_text(models))


@one_line_errors
def show(
    method: Annotated[
        str,
        typer.Argument(help="A method.", autocompletion=complete.methods, show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Show one method: what it does, its options, what it needs, and where it deviates.

    \b
    Examples:
      vlmcompress show divprune
      vlmcompress show fastv --json
    """
    import inspect

    from vlmcompress.defaults import AUTO
    from vlmcompress.methods.registry import COMPOSITIONS, METHODS

    told = {AUTO: _AUTO, **{name: f"stands for {what}" for name, what in COMPOSITIONS.items()}}
    if method in told:
        said = {"name": method, "summary": told[method]}
        text = paragraph(f"{method}: {told[method]}")
        typer.echo(json.dumps(said, indent=2) if as_json else text)
        return
    found = METHODS.get(method)
    entry = next(one for one in _methods() if one["name"] == method)
    entry["about"] = inspect.getdoc(found) or ""
    if as_json:
        typer.echo(json.dumps(entry, indent=2, default=str))
        return
    options = [f"{name}={value}" for name, value in entry["options"].items()]
    for head, text in (
        (method, entry["summary"]),
        ("stage", "+".join(entry["stages"])),
        ("options", ", ".join(options) or "none"),
        ("needs", ", ".join(entry["needs"]) or "nothing beside the features"),
        ("paper", _with_package(entry["paper"], entry)),
    ):
        typer.echo(paragraph(f"{head}: {text}"))
    typer.echo(f"\n{entry['about']}")


def _fits(stage: Stage | None, family: str | None) -> Callable[[dict[str, Any]], bool]:
    """Whether a method acts at the stage, and can run on the family.

    Raises:
        VLMCompressError: there is no such family, or it is refused.
    """
    from vlmcompress.methods.contracts.method import resolve

    signals = None
    stages = [one.value for one in Stage if stage in (None, one)]
    if family is not None:
        from vlmcompress.patches.families.standing import known_types, retriever_types, standing_of
        from vlmcompress.registry import unknown

        known = known_types() | retriever_types()
        if family not in known:
            raise unknown("family", family, list(known))
        standing = standing_of(family)
        if standing.state == "refused":
            raise VLMCompressError(f"{family} is refused: {standing.reason}")
        stages = [one for one in stages if one in known[family].stages]
        signals = known[family].signals

    def fits(method: dict[str, Any]) -> bool:
        missing = [] if signals is None else resolve(method["needs"], signals)[1]
        return not missing and not set(stages).isdisjoint(method["stages"])

    return fits


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
