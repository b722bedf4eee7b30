"""The MLP of a decoder's last layer, for those tokens alone whose states are read: no other layer looks at the rest.

Exact, and most of a layer less to compute, backwards too. Shapes: B sequences of T tokens, H width, R tokens read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class LastMlp:
    """Hooks around it, so that weights keep their names."""

    def __init__(self, mlp: nn.Module) -> None:
        self._token_R: Tensor | None = None  # None: all
        self._given_BTH: Tensor | None = None
        mlp.register_forward_pre_hook(self._pick)
        mlp.register_forward_hook(self._put)

    @classmethod
    def of(cls, decoder: Any) -> "LastMlp | None":
        """None where an architecture calls its layers otherwise, or where an MLP is a choice of experts."""
        layers = getattr(decoder, "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if layers is not None and len(layers) else None
        return None if mlp is None or hasattr(mlp, "experts") else cls(mlp)

    @contextmanager
    def reading(self, token_R: Tensor) -> Iterator[None]:
        """For a pass in the block; tokens are counted through all sequences, 0 .. B x T - 1, none of them twice."""
        self._token_R = token_R
        try:
            yield
        finally:
            self._token_R = self._given_BTH = None

    def _pick(self, mlp: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._token_R is None:
            return None
        self._given_BTH, *others = given
        return self._given_BTH.flatten(0, 1)[None, self._token_R], *others

    def _put(self, mlp: nn.Module, given: tuple[Any, ...], made: Tensor) -> Tensor:
        if self._token_R is None or self._given_BTH is None:
            return made
        nothing_NH = made.new_zeros(self._given_BTH.flatten(0, 1).shape)
        return nothing_NH.index_copy(0, self._token_R, made[0]).view(self._given_BTH.shape)
