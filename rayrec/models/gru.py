"""A gated recurrent unit over the history: GRU4Rec's cell, https://arxiv.org/abs/1511.06939, section 3.1.

It departs from GRU4Rec in what it is trained on: rated rows and their labels, or single histories with one sampled
other item, instead of parallel sessions with a ranking loss. Shapes: B sequences, L positions, D width.
"""

import torch
from torch import Tensor, nn

from rayrec.config.model import EncoderConfig
from rayrec.models.dropout import Dropout
from rayrec.models.encoder import SequenceEncoder


class GRU(SequenceEncoder):
    """User vector = last hidden state, item vector = item embedding, score = their dot product.

    One layer, as wide as the item embedding: r_t = s(W_r x_t + U_r h_{t-1}), z_t = s(W_z x_t + U_z h_{t-1}),
    n_t = tanh(W_n x_t + r_t * U_n h_{t-1}), h_t = (1 - z_t) * n_t + z_t * h_{t-1}, h_0 = 0, each product with a bias.
    """

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that is read."""
        super().__init__(config, items=items, max_len=max_len)
        self.item = nn.Embedding(items + 1, config.width, padding_idx=0)
        self.cell = nn.GRU(config.width, config.width, batch_first=True)
        self.dropout = Dropout(config.dropout)
        self.draw()

    def encode(self, history_BL: Tensor, label_BL: Tensor | None = None, *, newest_only: bool = False) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> hidden states (B, L, D), or (B, 1, D) of the last position alone.

        Rows are moved to the left, so that the cell begins at each row's first item and padding comes behind its last:
        a padded row gives the same states as an unpadded one. A row without history reads one padding, whose embedding
        is zero: its state is what the biases have learned. States of padded positions mean nothing.
        """
        rows, length = history_BL.shape
        known_B = (history_BL > 0).sum(1).clamp(min=1)
        place_L = torch.arange(length, device=history_BL.device)
        first_B1 = (length - known_B)[:, None]
        moved_BL = (place_L + first_B1) % length
        labels_BL = None if label_BL is None else label_BL.gather(1, moved_BL)
        states_BLD = self.dropout(self.cell(self.dropout(self.read(history_BL.gather(1, moved_BL), labels_BL)))[0])
        wanted = known_B[:, None] - 1 if newest_only else (place_L - first_B1) % length
        return states_BLD[torch.arange(rows, device=history_BL.device)[:, None], wanted]  # type: ignore[no-any-return]
