"""Several encoders of one kind that answer as one: deep ensembles, https://arxiv.org/abs/1612.01474, section 2.4.

They differ in the weights that were drawn for them and in what dropout hides. Each learns for itself, from the same
batches, and their mean is less at the mercy of a draw than any of them. Shapes: B rows, D width of one, M members.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.encoder import Encoder


class Averaged(Encoder):
    """The mapper reads the members' vectors beside each other, so that their dot product is the members' mean."""

    def __init__(self, config: EncoderConfig, draw: Callable[[], Encoder], *, items: int, max_len: int) -> None:
        """``draw`` makes a fresh member, as it would be alone: what its score starts from, it has of its own."""
        super().__init__(config.model_copy(update={"offset": None}), items=items, max_len=max_len)
        self.members = nn.ModuleList(draw() for _ in range(config.members))

    def user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, M x D)."""
        return self._beside([member.user_vectors(batch) for member in self._each()])

    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, M x D)."""
        return self._beside([member.item_vectors(item_B) for member in self._each()])

    def score(self, batch: Batch) -> Tensor:
        """The mean of the members' logits, fp32, shape (B,)."""
        return self.scores(batch).mean(0)

    def scores(self, batch: Batch) -> Tensor:
        """Each member's logits, shape (M, B)."""
        return torch.stack([member.score(batch) for member in self._each()])

    def own_score(self, batch: Batch) -> Tensor:
        """The mean of the members' own logits, shape (B,)."""
        return torch.stack([member.own_score(batch) for member in self._each()]).mean(0)

    def _each(self) -> list[Encoder]:
        return [cast("Encoder", member) for member in self.members]

    def _beside(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, dim=-1) / math.sqrt(len(vectors))
