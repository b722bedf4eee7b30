"""BERT4Rec: attention both ways over a sequence with hidden items, https://arxiv.org/abs/1904.06690.

It departs from the paper in its layers, which are SASRec's: norms come first, the feed-forward is a ReLU as wide as the
item embedding, and items are scored by the dot product with the state, without a projection and biases of their own.
Shapes: B sequences, M positions (of a history and what comes behind it), D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.transformer import Transformer

_LAST_ALONE = 1 / 11  # of the rows; the authors' code makes ten randomly masked copies of a sequence and one of these


class BERT4Rec(Transformer):
    """The user vector is the state of a mask behind the history: what stands there, given all that came before."""

    causal = False
    masks = 1

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that is read."""
        super().__init__(config, items=items, max_len=max_len)
        self.mask = items + 1  # the id that hides an item
        self.share = config.mask

    def user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, D)."""
        return self.encode(F.pad(batch.history_BL, (0, 1), value=self.mask), newest_only=True)[:, -1]

    def hidden(self, known_BM: Tensor) -> Tensor:
        """Which items of sequences the cloze hides, drawn anew; bool, shape (B, M).

        Each one with the probability ``encoder.mask``; but one row in eleven, by chance, hides its last item alone, as
        training then asks what the trained encoder is asked (section 3.6). So does a row in which nothing was drawn.
        ``known`` is False where a sequence is padded: on the left, or throughout, which hides nothing.
        """
        device = known_BM.device
        random_B1 = torch.rand(len(known_BM), 1, device=device) >= _LAST_ALONE
        drawn_BM = (torch.rand(known_BM.shape, device=device) < self.share) & known_BM & random_B1
        last_B1 = known_BM[:, -1:] & ~drawn_BM.any(1, keepdim=True)
        return torch.cat([drawn_BM[:, :-1], drawn_BM[:, -1:] | last_B1], dim=1)
