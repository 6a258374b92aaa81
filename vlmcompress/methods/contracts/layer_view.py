"""What a decoder-stage method sees."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from vlmcompress.tokens import Grid


class LayerView(Protocol):
    """What a decoder-stage method sees of one image before the layer where tokens are dropped.

    `n` counts the tokens of this forward that are still there (padding among them, always with
    weight 0); `V` those of the image. Tokens of earlier turns take part in the softmax but have no
    column.
    """

    @property
    def layer(self) -> int:
        """The first layer that will run on fewer tokens."""
        ...

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        ...

    @property
    def grid(self) -> Grid:
        """The image's grid before anything was dropped; one row for several (`parts`)."""
        ...

    @property
    def parts(self) -> tuple[Grid, ...]:
        """The grids that the image is laid out as, one after the other; mostly one."""
        ...

    @property
    def visual(self) -> Tensor:
        """[V] int64: columns of the image's visual tokens among the n keys."""
        ...

    @property
    def text(self) -> Tensor:
        """[T] int64: columns of the prompt's text after its last visual token."""
        ...

    @property
    def index(self) -> Tensor:
        """[V] int64: raster index in `grid` of each surviving token."""
        ...

    def attention(
        self,
        rows: Literal["last", "text", "after"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Literal["this", "next", "previous"] = "this",
    ) -> Tensor:
        """Softmax attention of the query rows, float32, per head.

        Args:
            rows: the last token, the text after the last visual token, or the first token after
                the image.
            keys: softmax over all keys the row may see, or over the image's visual tokens only.
            rope: with or without rotary embedding of queries and keys.
            of: the layer whose weights are used: "this" is `layer`, about to run, on its own input;
                "previous" the layer that just ran, on its own input; "next" the weights of
                `layer + 1` on the input of `layer`.

        Returns:
            [H, R, n] for `keys="all"`, [H, R, V] for `keys="visual"`.
        """
        ...

    def propagate(
        self,
        mass: Tensor,
        *,
        temperature: float = 1.0,
        steps: int = 1,
        of: Literal["this", "previous"] = "this",
    ) -> Tensor:
        """Steps over the attention graph of the n tokens, mass @ softmax(logits / temperature).

        Computed in blocks of rows; for one step the matrix is never stored. Rows of padding carry
        no mass.

        Args:
            mass: [n] or [H, n] float32, or one number for all tokens.
            temperature: of the softmax over all keys that a row may see.
            steps: how many; several at once are several times cheaper than one after the other.
            of: the layer whose weights are used, as for `attention`.

        Returns:
            [H, n] float32.
        """
        ...

    def keys(
        self, *, rope: bool = True, of: Literal["this", "next", "previous"] = "this"
    ) -> Tensor:
        """[Hkv, n, hd] float32: keys of the n tokens, with or without rotary embedding."""
        ...

    @property
    def hidden(self) -> Tensor:
        """[n, D] float32: what is about to enter `layer`."""
        ...

    @property
    def entered(self) -> Tensor:
        """[n, D] float32: what entered the layer that just ran."""
        ...

    def activations(self, rows: Tensor, of: Literal["previous"] = "previous") -> Tensor:
        """[R, I] float32: act(gate) * up of the MLP of the layer that just ran, of some tokens.

        Args:
            rows: [R] int64 columns among the n.
            of: only the layer that just ran has them.
        """
        ...
