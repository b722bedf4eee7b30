"""Matrix factorisation and its neural kin: encoders that know a user by name instead of by history.

Row 0 of the user table is the unknown user. Its vector and bias are zero and stay zero, and so are those of every user
who does not occur in training: user tables start at zero and only a user's own rows move them. Zero is what the prior
behind weight decay says of somebody of whom nothing is known (probabilistic matrix factorisation, section 2,
https://papers.nips.cc/paper/3208-probabilistic-matrix-factorization). An item that does not occur keeps the small
vector that was drawn for it, as SASRec's items do. Shapes: B rows, D width, F half of it.
"""

import itertools

import torch
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.dropout import Dropout
from rayrec.models.encoder import Encoder


class Factors(Encoder):
    """Tables of user and item vectors."""

    def __init__(self, config: EncoderConfig, *, users: int, items: int, max_len: int) -> None:
        """``users`` and ``items`` are counts without the unknown user and padding."""
        super().__init__(config, items=items, max_len=max_len)
        self.user = _zeros(users + 1, config.width)
        self.item = nn.Embedding(items + 1, config.width, padding_idx=0)
        nn.init.normal_(self.item.weight, std=0.02)
        with torch.no_grad():
            self.item.weight[0].zero_()

    def user_vectors(self, batch: Batch) -> Tensor:
        """Shape (B, D); zero for an unknown user."""
        return self.user(batch.user_B)  # type: ignore[no-any-return]

    def item_vectors(self, item_B: Tensor) -> Tensor:
        """Shape (B,) -> (B, D)."""
        return self.item(item_B)  # type: ignore[no-any-return]


class MF(Factors):
    """Biased matrix factorisation: score = p_u . q_i + b_u + b_i + b.

    Koren, Bell and Volinsky 2009, https://doi.org/10.1109/MC.2009.263, equation 4, with a logit in place of a rating.
    The mapper reads p_u and q_i.
    """

    def __init__(self, config: EncoderConfig, *, users: int, items: int, max_len: int) -> None:
        """``users`` and ``items`` are counts without the unknown user and padding."""
        super().__init__(config, users=users, items=items, max_len=max_len)
        self.user_bias, self.item_bias = _zeros(users + 1, 1), _zeros(items + 1, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def own_score(self, batch: Batch) -> Tensor:
        """Logit of "like" for each row, fp32, shape (B,)."""
        bias_B1 = self.user_bias(batch.user_B) + self.item_bias(batch.item_B) + self.bias
        logit_B: Tensor = super().own_score(batch) + bias_B1[:, 0].float()
        return logit_B


class NeuMF(Factors):
    """Neural matrix factorisation: He et al. 2017, https://arxiv.org/abs/1708.05031, section 3.4, equation 12.

    A vector's first half is its factor g, the other half m what the tower reads. With p the user's and q the item's:
    z_0 = [p_m; q_m], z_l = relu(W_l z_{l-1} + c_l) for l = 1, 2, 3, score = h . [p_g * q_g; z_3] + b. Widths of the
    tower: D, D/2, D/4, D/8, halved from layer to layer as in section 3.3. The mapper reads [p_g; p_m] and [q_g; q_m].
    It is trained from scratch (the paper's pre-training is left out), with dropout in front of the tower's layers.
    """

    def __init__(self, config: EncoderConfig, *, users: int, items: int, max_len: int) -> None:
        """``users`` and ``items`` are counts without the unknown user and padding."""
        super().__init__(config, users=users, items=items, max_len=max_len)
        widths = [config.width >> layer for layer in range(4)]
        self.tower = nn.ModuleList(nn.Linear(wide, half) for wide, half in itertools.pairwise(widths))
        self.out = nn.Linear(widths[1] + widths[-1], 1)
        self.dropout = Dropout(config.dropout)

    def own_score(self, batch: Batch) -> Tensor:
        """Logit of "like" for each row, fp32, shape (B,)."""
        user_factor_BF, user_BF = self.user_vectors(batch).chunk(2, dim=-1)
        item_factor_BF, item_BF = self.item_vectors(batch.item_B).chunk(2, dim=-1)
        hidden = torch.cat([user_BF, item_BF], dim=-1)
        for layer in self.tower:
            hidden = torch.relu(layer(self.dropout(hidden)))
        fused = torch.cat([user_factor_BF * item_factor_BF, hidden], dim=-1)
        return self.out(fused)[:, 0].float()  # type: ignore[no-any-return]


def _zeros(rows: int, width: int) -> nn.Embedding:
    """A table that starts at zero and whose row 0 stays there."""
    table = nn.Embedding(rows, width, padding_idx=0)
    nn.init.zeros_(table.weight)
    return table
