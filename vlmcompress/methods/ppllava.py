"""PPLLaVA: pooling guided by the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.grid_shapes import Pooler, near_square
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.ops.pool import geometry, strided
from vlmcompress.ops.similarity import cosines
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class PPLLaVA(Pooler):
    """Windows over time and space, averaged with weights by relevance to the question.

    p = softmax(scale * relevance) over the whole clip; in each window the weights are
    softmax(p / theta). p sums to 1 over the clip while theta is a constant, so the more tokens, the
    nearer to a plain average; `repair` offers two ways out. Official code: farewellthree/PPLLaVA.

    Without a budget the paper's windows of 2 x 3 x 3 (cut to the grid, so 1 x 3 x 3 of an image),
    what is left over dropped. A budget is met in space first; only one below a token per frame
    makes fewer frames (ours). Sides that divide the grid are preferred unless others give more than
    twice the tokens; windows of others overlap by less than their stride.

    Deviations:
        Weights pool projected features with the second softmax, as the code does; the paper's text
        pools before the projector with the first.
        Without a CLIP text tower, relevance is the cosine of features with the mean embedded word.
        Each image, and each tile, has its own softmax; the code has one for all of a sample.
    """

    name: ClassVar[str] = "ppllava"
    paper: ClassVar[str] = "arXiv 2411.02327"
    summary: ClassVar[str] = "averages windows weighted by relevance to the question"
    needs: ClassVar[frozenset[str]] = frozenset({"relevance|text"})

    kernel: tuple[int, ...] = (2, 3, 3)
    """Frames, rows and columns of a window when no budget is given."""
    theta: float = 0.01
    """Temperature inside a window."""
    scale: float = 100.0
    """Of relevance: CLIP's learned scale of logits."""
    repair: Literal["none", "window", "count"] = "none"
    """"window": softmax(scale * relevance) in the window, without p. "count": N * p instead of
    p."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if len(self.kernel) != 3 or min(self.kernel) < 1:
            raise VLMCompressError(
                f"ppllava: kernel must be three numbers of at least 1, got {self.kernel}"
            )
        for name in ("theta", "scale"):
            if not getattr(self, name) > 0:
                raise VLMCompressError(
                    f"ppllava: {name} must be above 0, got {getattr(self, name)}"
                )

    def usual(self, grid: Grid) -> Grid:
        """The grid that `kernel` makes."""
        return Grid(*(output for _, _, output in self._default(grid)))

    def fitted(self, grid: Grid, budget: float) -> Grid:
        """All frames while there is a token for each.

        Raises:
            BudgetError: less than one token.
        """
        most = self.at_least_one(budget)
        if most < grid.t:
            # The frames as the columns of one row.
            return Grid(_tidy(Grid(1, 1, grid.t), most)[1], 1, 1)
        return Grid(grid.t, *_tidy(grid, most // grid.t))

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means with weights."""
        grid = tokens.grid
        sizes, outputs = (grid.t, grid.h, grid.w), (shape.t, shape.h, shape.w)
        axes = [geometry(size, output=out) for size, out in zip(sizes, outputs, strict=True)]
        if shape == self.usual(grid):
            axes = self._default(grid)
        return strided(tokens.features, grid, axes, self._scores(_relevance(tokens)))

    def _default(self, grid: Grid) -> list[tuple[int, int, int]]:
        kernels = map(min, self.kernel, (grid.t, grid.h, grid.w))
        sizes = (grid.t, grid.h, grid.w)
        return [geometry(n, kernel=k, stride=k) for n, k in zip(sizes, kernels, strict=True)]

    def _scores(self, relevance: Tensor) -> Tensor:
        """[N]: weights are their softmax in each window."""
        if self.repair == "window":
            return self.scale * relevance
        share = (self.scale * relevance).softmax(-1) / self.theta
        return share * len(relevance) if self.repair == "count" else share


def _relevance(tokens: VisualTokens) -> Tensor:
    """[N] float32."""
    if tokens.relevance is not None:
        return check_signal("relevance", tokens.relevance, tokens)
    text, features = tokens.text, tokens.features
    if text is None or len(text) == 0:
        raise VLMCompressError("ppllava needs a question: relevance, or text of at least one word")
    mean = text.to(features.device).float().mean(0, keepdim=True)
    return cosines(features, mean)[:, 0]


def _tidy(grid: Grid, most: int) -> tuple[int, int]:
    a, b = near_square(grid, most, lambda size, parts: size % parts < size // parts)
    c, d = near_square(grid, most, lambda size, parts: size % parts == 0)
    return (c, d) if 2 * c * d >= a * b else (a, b)
