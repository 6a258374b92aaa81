"""PruneSID: groups by principal components, in each group no token that repeats a better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.components import component_of
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import marked
from vlmcompress.ops.similarity import self_cosines, unit_rows
from vlmcompress.ops.suppression import leaders
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class PruneSID(AskingSelector):
    """Group tokens by principal component, suppress repeats in each group, share the count out.

    PSCA: each token belongs to the component, of int(n / 4) for a count of n, that it has the
    largest part in (`vlmcompress.ops.components`). NMS: in a group a token is suppressed by one of
    more attention whose cosine is above tau = n / 32 * the mean cosine of all pairs of the image.
    Every group keeps one token, the rest goes to the groups by what survived in each, up to
    5 * ceil(n / 64) and to what survived; what is then left over goes to those of the most
    survivors. Survivors come before suppressed ones, each by attention. Official code:
    ZhengyaoFang/PruneSID.

    Ours, where the description or this project leaves it open:
        Components are those of the features after the projector; the official code decomposes the
        states of CLIP before it, CLS among them, and cosines are of these, too.
        Starting directions of the decomposition are fixed; the code draws them anew in every call.
        CLS is no token here, so that all n are patches; the code keeps CLS and n - 1.
        Towers without CLS rank by the attention that tokens receive.
        Where more than n groups have tokens, those of the most survivors keep one.
        The frames of a clip are one pool. The compression rate by image is not taken over.
    """

    name: ClassVar[str] = "prunesid"
    paper: ClassVar[str] = "arXiv 2603.09480"
    summary: ClassVar[str] = "keeps what does not repeat in each principal component"
    needs: ClassVar[frozenset[str]] = frozenset({NEED})

    ratio: float = 0.111
    """Share kept when no budget is given; in (0, 1]. 64 of 576, as in the paper's tables."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        total, attention = len(tokens.grid), saliency(tokens)
        count = max(0, min(count, total))
        with torch.autocast(attention.device.type, enabled=False):
            unit = unit_rows(tokens.features)
            group = component_of(tokens.features, count // 4)
            cosines = self_cosines(unit)
            pairs = max(1, total * (total - 1) // 2)
            limit = count / 32 * cosines.triu(1).sum() / pairs
        leads = leaders((cosines > limit) & (group[:, None] == group), attention)
        own = one_hot(group, max(1, count // 4))
        sizes, survivors = yield [own.sum(0), (own * leads[:, None]).sum(0)]
        quotas = torch.tensor(_shared(sizes.tolist(), survivors.tolist(), count))
        # By group, survivors first, each by attention: the first so many of each group stay.
        order = attention.argsort(descending=True, stable=True)
        order = order[leads[order].long().argsort(descending=True, stable=True)]
        order = order[group[order].argsort(stable=True)]
        starts = (sizes.cumsum(0) - sizes).to(order.device)
        rank = torch.arange(total, device=order.device) - starts[group[order]]
        stays = rank < quotas.to(order.device)[group[order]]
        return order[marked(stays, count)].sort().values


def _shared(sizes: list[int], survivors: list[int], count: int) -> list[int]:
    """How many tokens each group keeps, `count` in all."""
    least = [min(1, size) for size in sizes]
    by_survivors = sorted(range(len(sizes)), key=lambda g: -survivors[g])
    while sum(least) > count:
        least[next(g for g in reversed(by_survivors) if least[g])] = 0
    ceiling = 5 * -(-count // 64)
    most = [min(ceiling, *both) for both in zip(sizes, survivors, strict=True)]
    while sum(most) < count:
        most = [min(top + 1, size) for top, size in zip(most, sizes, strict=True)]
    rest, total = count - sum(least), max(1, sum(survivors))
    ends = [round(sum(survivors[: g + 1]) / total * rest) for g in range(len(sizes))]
    shares = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    kept = [min(low + own, top) for low, own, top in zip(least, shares, most, strict=True)]
    for g in by_survivors:
        kept[g] += min(most[g] - kept[g], count - sum(kept))
    return kept
