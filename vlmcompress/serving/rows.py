"""Which newlines go with the rows that they end, as far as a prompt can be laid out by that."""

from __future__ import annotations

import torch

from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.method import ProjectorMethod
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.questions import answered
from vlmcompress.patches.decoder.selection import choose
from vlmcompress.patches.sequence.separators import Separators
from vlmcompress.tokens import Layout, VisualTokens


def emptied(method: ProjectorMethod, plan: ImagePlan, layout: Layout) -> tuple[int, ...]:
    """Places of the separators whose rows keep no token, known before the picture is encoded.

    Only where the method goes by the grid of every part: others are asked when the prompt has its
    length already, so that all separators stay.

    Args:
        method: keeps or merges the tokens.
        plan: how many of them.
        layout: of all of them.
    """
    places = torch.tensor([one.place for one in layout.separators], dtype=torch.long)
    separators = Separators.of(layout, places)
    if separators.all_stay(len(layout), plan.keep):
        return ()
    if not all(method.goes_by(grid) for grid, _ in plan.parts):
        return ()
    # Whatever they are, the same places stay.
    anything = VisualTokens(torch.ones(len(layout), 1), layout.grid, text=torch.ones(1, 1))
    checks = Checks()
    chosen = answered(choose(method, plan, anything, layout.parts, False, False, checks), checks)
    checks.settle()
    return tuple(places[~separators.bound_to(chosen.kept)].tolist())
