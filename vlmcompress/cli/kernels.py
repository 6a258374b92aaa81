"""`vlmcompress kernels`: which kernels are right and faster on the user's card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcompress.cli.common import one_line_errors, progress, quiet
from vlmcompress.cli.options import Quiet
from vlmcompress.errors import VLMCompressError

if TYPE_CHECKING:
    import torch

    from vlmcompress.ops.proving.verdicts import Verdict

_SECONDS = 20.0
"""For a case: enough to compile its kernels, too."""


@one_line_errors
def kernels(
    check: Annotated[
        bool, typer.Option("--check", help="Try all kernels on usual shapes, anew.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document and nothing else.")
    ] = False,
    quietly: Quiet = False,
) -> None:
    """Show what is known of the Triton kernels on this GPU, or try them.

    A kernel runs where it gave exactly what torch gives and was faster, on shapes like those at
    hand. That is found out at the first call that needs it, or here beforehand, and kept.
    VLMCOMPRESS_OPS=torch turns all kernels off.

    \b
    Examples:
      vlmcompress kernels --check
      vlmcompress kernels --json

    Exit code 0: no kernel is wrong; 1: one is, or cannot run; 2: there is no GPU or no triton.
    """
    import importlib.util

    import torch

    if not torch.cuda.device_count():
        raise VLMCompressError(
            "kernels run on a CUDA device, and there is none: all ops run in torch"
        )
    if importlib.util.find_spec("triton") is None:
        raise VLMCompressError("triton is not installed, pip install triton: all ops run in torch")
    from vlmcompress.ops.proving import verdicts

    device = torch.device("cuda", torch.cuda.current_device())
    card = verdicts.card_of(device)
    with quiet():
        rows = list(_judged(card, device) if check else verdicts.kept(card))
    typer.echo(_document(card, rows) if as_json else _table(card, rows))
    raise typer.Exit(int(any(found.outcome in ("wrong", "broken") for *_, found in rows)))


def _judged(card: str, device: torch.device) -> Iterator[tuple[str, str, Verdict]]:
    """Every usual case, tried."""
    from vlmcompress.ops.proving.decision import judge
    from vlmcompress.ops.proving.trials import TRIALS
    from vlmcompress.ops.proving.verdicts import Case

    for op, trial in TRIALS.items():
        for sizes in trial.usual:
            case = Case.of(op, sizes, trial.dtype)
            with progress(f"{op} {case}"):
                yield op, str(case), judge(card, case, device, _SECONDS)


def _document(card: str, rows: list[tuple[str, str, Verdict]]) -> str:
    from dataclasses import asdict

    found = [{"op": op, "case": case, **asdict(verdict)} for op, case, verdict in rows]
    return json.dumps({"card": card, "kernels": found}, indent=2)


def _table(card: str, rows: list[tuple[str, str, Verdict]]) -> str:
    from vlmcompress.cli.tables import texts

    if not rows:
        return f"{card}\nnothing is known yet: try all kernels with --check"
    heads = ["op", "shape", "torch, ms", "kernel, ms", "runs", "because"]
    cells = [
        [
            op,
            case,
            _number(verdict.torch_ms),
            _number(verdict.kernel_ms),
            "kernel" if verdict.outcome == "faster" else "torch",
            ": ".join(part for part in (verdict.outcome, verdict.detail) if part),
        ]
        for op, case, verdict in rows
    ]
    return f"{card}\n{texts(heads, cells)}"


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
