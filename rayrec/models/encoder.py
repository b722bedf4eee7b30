"""What every collaborative encoder offers: to its own stage a score, to the mapper user and item vectors.

Whatever fills this interface goes through the same stages, from ``pretrain_encoder`` to the hybrid one. Shapes: B rows,
L positions, D width.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from rayrec.batch import Batch


class Encoder(nn.Module, ABC):
    """Learns from who liked what; its vectors carry that into a language model."""

    def __init__(self, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that a row brings."""
        super().__init__()
        self.items, self.max_len = items, max_len

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """What is known of each row's user before that row, shape (B, D)."""

    @abstractmethod
    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""

    def score(self, batch: Batch) -> Tensor:
        """Logit of "like" for each row: the dot product of user and item vectors, fp32, shape (B,)."""
        return (self.user_vectors(batch).float() * self.item_vectors(batch.item_B).float()).sum(-1)


class SequenceEncoder(Encoder):
    """Reads the user's liked items in order; the user vector is the newest hidden state."""

    item: nn.Embedding

    @abstractmethod
    def encode(self, history_BL: Tensor, *, newest_only: bool = False) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> hidden states (B, L, D), or (B, 1, D) of the last position alone."""

    def user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, D)."""
        return self.encode(batch.history_BL, newest_only=True)[:, -1]

    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""
        return self.item(item_B)  # type: ignore[no-any-return]
