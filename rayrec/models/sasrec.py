"""SASRec, the collaborative encoder: Kang and McAuley 2018, https://arxiv.org/abs/1808.09781; paper section 4.2.

Shapes: B sequences, L positions, D width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.config import EncoderConfig


class Block(nn.Module):
    """Pre-norm causal self-attention, then the point-wise feed-forward (two 1x1 convolutions are two linear maps)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, width)
        self.feed_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Shape (B, L, D) -> (B, L, D); ``mask`` is True where attention is allowed."""
        batch, length, width = states_BLD.shape
        qkv = self.qkv(self.attention_norm(states_BLD)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D/H)
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1LL, dropout_p=rate)
        states_BLD = states_BLD + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        inner = self.dropout(F.relu(self.feed_in(self.feed_norm(states_BLD))))
        fed_BLD: Tensor = states_BLD + self.dropout(self.feed_out(inner))
        return fed_BLD


class SASRec(nn.Module):
    """User vector = last hidden state, item vector = item embedding, score = their dot product."""

    def __init__(self, config: EncoderConfig, *, items: int, max_len: int) -> None:
        """``items`` is the catalogue size without padding; ``max_len`` the longest history that is read."""
        super().__init__()
        self.items, self.max_len = items, max_len
        self.item = nn.Embedding(items + 1, config.width, padding_idx=0)
        self.position = nn.Embedding(max_len, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.item.weight[0].zero_()

    def encode(self, history_BL: Tensor) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> hidden states (B, L, D).

        Positions count from the newest item, so that a batch padded to its own longest row gives the same vectors as
        one padded to ``max_len``. A padded position sees only itself, which keeps its softmax finite.
        """
        length = history_BL.shape[1]
        positions = torch.arange(self.max_len - length, self.max_len, device=history_BL.device)
        known_BL = history_BL > 0
        states = self.dropout(self.item(history_BL) + self.position(positions)) * known_BL.unsqueeze(-1)
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=history_BL.device).tril()
        itself_LL = torch.eye(length, dtype=torch.bool, device=history_BL.device)
        mask_B1LL = ((causal_LL & known_BL.unsqueeze(1)) | itself_LL).unsqueeze(1)
        for block in self.blocks:
            states = block(states, mask_B1LL)
        hidden_BLD: Tensor = self.norm(states)
        return hidden_BLD

    def user_vectors(self, history_BL: Tensor) -> Tensor:
        """Shape (B, L) -> (B, D)."""
        return self.encode(history_BL)[:, -1]

    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""
        return self.item(item_B)  # type: ignore[no-any-return]

    def score(self, history_BL: Tensor, item_B: Tensor) -> Tensor:
        """Dot product of user and item vectors, fp32, shape (B,)."""
        return (self.user_vectors(history_BL).float() * self.item_vectors(item_B).float()).sum(-1)
