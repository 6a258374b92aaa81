"""Reports of calls that nobody made."""

from vlmcompress.report.report import ImageReport


def report(kept, cuts=None, groups=None, grid=(1, 4, 4), layers=4):
    count = grid[0] * grid[1] * grid[2]
    return ImageReport(
        index=0,
        row=0,
        grid=grid,
        parts=[grid],
        before=count,
        given=count,
        after=len(kept),
        kept=kept,
        groups=groups,
        cuts=cuts or {},
        per_layer=[len(kept)] * layers,
        mean=len(kept),
        separators=[0] * layers,
    )
