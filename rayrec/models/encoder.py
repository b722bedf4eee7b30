"""What every collaborative encoder offers: to its own stage a score, to the mapper user and item vectors.

Whatever fills this interface goes through the same stages, from ``pretrain_encoder`` to the hybrid one. Shapes: B rows,
L positions, D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.offset import Offset
from rayrec.stages import History


class Encoder(nn.Module, ABC):
    """Learns from who liked what; its vectors carry that into a language model."""

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that a row brings."""
        super().__init__()
        self.items, self.max_len = items, max_len
        self.offset = Offset(config.trust) if config.offset else None

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """What is known of each row's user before that row, shape (B, D)."""

    @abstractmethod
    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""

    def score(self, batch: Batch) -> Tensor:
        """Logit of "like" for each row, fp32, shape (B,)."""
        own_B = self.own_score(batch)
        return own_B if self.offset is None else self.offset(own_B, batch.floor_B)

    def scores(self, batch: Batch) -> Tensor:
        """Logits of all who learn from a row, each for itself, shape (M, B): here of one."""
        return self.score(batch)[None]

    def own_score(self, batch: Batch) -> Tensor:
        """The same without an offset: the dot product of user and item vectors."""
        return (self.user_vectors(batch).float() * self.item_vectors(batch.item_B).float()).sum(-1)


class SequenceEncoder(Encoder):
    """Reads the user's items in order; the user vector is the newest hidden state.

    Of liked items alone their embeddings are read. Of all rated items, the sum of each one's embedding and that of its
    label, so that one item is known by one vector whatever became of it; the target's vector has no label.
    """

    item: nn.Embedding

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        super().__init__(config, items=items, max_len=max_len)
        self.label = nn.Embedding(3, config.width, padding_idx=0) if config.history is History.RATED else None
        self.share_V: Tensor | None  # of the training rows, by item; the data says it, so no part holds it
        self.register_buffer("share_V", torch.zeros(items + 1) if config.centred else None, persistent=False)

    def draw(self, *tables: nn.Embedding) -> None:
        """Initial values of the item table and other ``tables``; padding is zero."""
        for table in (self.item, *tables, *([self.label] if self.label else [])):
            nn.init.normal_(table.weight, std=0.02)
            if table.padding_idx is not None:
                with torch.no_grad():
                    table.weight[table.padding_idx].zero_()

    def read(self, history_BL: Tensor, label_BL: Tensor | None) -> Tensor:
        """What the encoder reads at each position, shape (B, L, D)."""
        item_BLD: Tensor = self.item(history_BL)
        if self.label is None:
            return item_BLD
        assert label_BL is not None, "the batch holds liked histories and the encoder reads rated ones"
        return item_BLD + self.label(label_BL)  # type: ignore[no-any-return]

    @abstractmethod
    def encode(self, history_BL: Tensor, label_BL: Tensor | None = None, *, newest_only: bool = False) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> hidden states (B, L, D), or (B, 1, D) of the last position alone.

        ``label_BL`` are those of a history of rated items: 1 disliked, 2 liked, 0 padding.
        """

    def centre_on(self, share_V: Tensor) -> None:
        """Tell a centred encoder which items training rows ask about; shape (items + 1,), the sum is 1."""
        assert self.share_V is not None
        self.share_V.copy_(share_V)

    def own_score(self, batch: Batch) -> Tensor:
        """The dot product; centred, how far it is above that with the mean item of the training rows.

        What a user's vector would add to every item alike, how freely the user likes, is then left to the offset.
        """
        if self.share_V is None:
            return super().own_score(batch)
        every_V = torch.arange(len(self.share_V), device=self.share_V.device)
        mean_D = self.share_V @ self.item_vectors(every_V).float()
        item_BD = self.item_vectors(batch.item_B).float() - mean_D
        return (self.user_vectors(batch).float() * item_BD).sum(-1)

    def user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, D)."""
        return self.encode(batch.history_BL, batch.label_BL, newest_only=True)[:, -1]

    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""
        return self.item(item_B)  # type: ignore[no-any-return]
