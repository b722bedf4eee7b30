"""What SASRec and BERT4Rec have in common: embeddings of items and positions, then blocks of self-attention.

Shapes: B sequences, L positions, D width, H heads.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.config.model import EncoderConfig
from rayrec.models.dropout import Dropout
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

    def forward(self, states_BLD: Tensor, mask_B1LL: Tensor, *, newest_only: bool = False) -> Tensor:
        """Shape (B, L, D) -> (B, L, D), or (B, 1, D) for the last position alone, which costs a fraction.

        ``mask`` is True where attention is allowed.
        """
        normed_BLD = self.attention_norm(states_BLD)
        if newest_only:
            states_BLD, mask_B1LL = states_BLD[:, -1:], mask_B1LL[:, :, -1:]
        width, asked = states_BLD.shape[2], states_BLD.shape[1]
        query = self._heads(F.linear(normed_BLD[:, -asked:], self.qkv.weight[:width], self.qkv.bias[:width]))
        both = F.linear(normed_BLD, self.qkv.weight[width:], self.qkv.bias[width:])
        key, value = (self._heads(part) for part in both.chunk(2, dim=-1))
        mixed = self._attend(query, key, value, mask_B1LL)
        states_BLD = states_BLD + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        inner = self.dropout(F.relu(self.feed_in(self.feed_norm(states_BLD))))
        fed_BLD: Tensor = states_BLD + self.dropout(self.feed_out(inner))
        return fed_BLD

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Shapes (B, H, Q, D/H), (B, H, L, D/H) twice -> (B, H, Q, D/H)."""
        if not (self.training and self.dropout.p):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1LL)
        score_BHQL = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        share_BHQL = score_BHQL.masked_fill(~mask_B1LL, -torch.inf).softmax(-1)
        mixed: Tensor = self.dropout(share_BHQL) @ value
        return mixed

    def _heads(self, vectors_BLD: Tensor) -> Tensor:
        """Shape (B, L, D) -> (B, H, L, D/H)."""
        batch, length, width = vectors_BLD.shape
        return vectors_BLD.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)


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
        states = self.dropout(self.read(history_BL, label_BL) + self.position(positions)) * known_BL.unsqueeze(-1)
        mask_B1LL = self._visible(known_BL).unsqueeze(1)
        for number, block in enumerate(self.blocks, 1):
            states = block(states, mask_B1LL, newest_only=newest_only and number == len(self.blocks))
        hidden_BLD: Tensor = self.norm(states)
        return hidden_BLD

    def _visible(self, known_BL: Tensor) -> Tensor:
        """Which positions (last) each one attends to, shape (B, L, L)."""
        length = known_BL.shape[1]
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=known_BL.device)
        itself_LL = torch.eye(length, dtype=torch.bool, device=known_BL.device)
        return ((seen_LL.tril() if self.causal else seen_LL) & known_BL.unsqueeze(1)) | itself_LL
