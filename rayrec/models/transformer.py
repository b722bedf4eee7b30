"""What SASRec and BERT4Rec have in common: embeddings of items and positions, then blocks of self-attention.

Shapes: B sequences, L positions, D width, H heads.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.config.model import EncoderConfig
from rayrec.models.dropout import Dropout, is_kept, kept_scale
from rayrec.models.dropped_attention import attend_with_dropout
from rayrec.models.encoder import SequenceEncoder


class Block(nn.Module):
    """Pre-norm self-attention, then the point-wise feed-forward (two 1x1 convolutions are two linear maps)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, width)
        self.feed_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, states_BLD: Tensor, bias_BLL: Tensor, *, newest_only: bool = False) -> Tensor:
        """Shape (B, L, D) -> (B, L, D), or (B, 1, D) for the last position alone, which costs a fraction.

        ``bias`` is added to the scores: 0 where attention is allowed, else -inf.
        """
        normed_BLD = self.attention_norm(states_BLD)
        if newest_only:
            states_BLD, bias_BLL = states_BLD[:, -1:], bias_BLL[:, -1:]
            width, weight, bias = normed_BLD.shape[2], self.qkv.weight, self.qkv.bias
            query_B1D = F.linear(normed_BLD[:, -1:], weight[:width], bias[:width])
            mixed_BLD = self._attend((query_B1D, F.linear(normed_BLD, weight[width:], bias[width:])), bias_BLL)
        else:
            mixed_BLD = self._attend((self.qkv(normed_BLD),), bias_BLL)
        states_BLD = self.dropout.onto(states_BLD, self.out(mixed_BLD))
        inner_BLD = self.dropout(F.relu(self.feed_in(self.feed_norm(states_BLD))))
        return self.dropout.onto(states_BLD, self.feed_out(inner_BLD))

    def _attend(self, projected: tuple[Tensor, ...], bias_BQL: Tensor) -> Tensor:
        """Queries, keys and values, behind each other in the last dimension of one tensor or two -> (B, Q, D)."""
        dropout = self.dropout
        if dropout.draws(bias_BQL):
            shape = torch.Size((len(bias_BQL), self.heads, *bias_BQL.shape[1:]))
            is_kept_BHQL = is_kept(shape, dropout.p, bias_BQL.dtype)
            return attend_with_dropout(projected, bias_BQL, is_kept_BHQL, kept_scale(dropout.p))
        each = self.out.in_features // self.heads
        by_head = [vectors.view(*vectors.shape[:2], -1, each).transpose(1, 2) for vectors in projected]
        query, key, value = (part for vectors in by_head for part in torch.split(vectors, self.heads, 1))
        rate = dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, bias_BQL.unsqueeze(1), dropout_p=rate)
        return mixed.transpose(1, 2).flatten(2)


class Transformer(SequenceEncoder):
    """User vector = newest hidden state, item vector = item embedding, score = their dot product."""

    causal: ClassVar[bool]  # a position sees what is before it alone
    masks: ClassVar[int] = 0  # ids behind those of items, and positions behind a history

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that is read."""
        super().__init__(config, items=items, max_len=max_len)
        self.item = nn.Embedding(items + 1 + self.masks, config.width, padding_idx=0)
        self.position = nn.Embedding(max_len + self.masks, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.draw(self.position)

    def encode(self, history_BL: Tensor, label_BL: Tensor | None = None, *, newest_only: bool = False) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> hidden states (B, L, D), or (B, 1, D) of the last position alone.

        Positions count from the newest item, so that a batch padded to its own longest row gives the same vectors as
        one padded to ``max_len``. A padded position sees only itself, which keeps its softmax finite.
        """
        length, places = history_BL.shape[1], self.position.num_embeddings
        positions = torch.arange(places - length, places, device=history_BL.device)
        known_BL = history_BL > 0
        read_BLD = self.read(history_BL, label_BL)  # zero where padded
        known_BL1 = known_BL.unsqueeze(-1).to(read_BLD.dtype)
        states = self.dropout(torch.addcmul(read_BLD, self.position(positions), known_BL1))
        visible_BLL = self._visible(known_BL)
        bias_BLL = torch.zeros_like(visible_BLL, dtype=states.dtype).masked_fill_(~visible_BLL, -torch.inf)
        for number, block in enumerate(self.blocks, 1):
            states = block(states, bias_BLL, newest_only=newest_only and number == len(self.blocks))
        hidden_BLD: Tensor = self.norm(states)
        return hidden_BLD

    def _visible(self, known_BL: Tensor) -> Tensor:
        """Which positions (last) each one attends to, shape (B, L, L)."""
        length = known_BL.shape[1]
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=known_BL.device)
        itself_LL = torch.eye(length, dtype=torch.bool, device=known_BL.device)
        return ((seen_LL.tril() if self.causal else seen_LL) & known_BL.unsqueeze(1)) | itself_LL
