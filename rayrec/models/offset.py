"""A logit that somebody else has found, as the start of a model's own score.

The model begins as good as that and learns what is missing. At the start its own score does not count at all, as a
residual branch behind a zero gate: https://arxiv.org/abs/2003.04887. Shapes: B rows.
"""

import torch
from torch import Tensor, nn


class Offset(nn.Module):
    """score = a x own + b x start + c; a, b and c begin at 0, 1 and 0.

    What is learned is how far they are from there: so a model in low precision, whose engine casts every parameter,
    begins exactly at the other's score, and weight decay leads back to it. The sum is fp32.

    A model knows the rows that it learns from by heart, and its own score is larger there than on other rows, so that a
    is too large for them. Outside training ``trust`` x a counts.
    """

    def __init__(self, trust: float = 1.0) -> None:
        super().__init__()
        self.trust = trust
        self.own, self.start, self.bias = (nn.Parameter(torch.zeros(1)) for _ in range(3))

    def forward(self, own_B: Tensor, start_B: Tensor | None) -> Tensor:
        """Logits of the model alone and those that it starts from -> logits of "like", fp32, shape (B,)."""
        assert start_B is not None, "the batch holds no logits to start from"
        own = self.own.float() * (1 if self.training else self.trust)
        score_B: Tensor = own * own_B + (1 + self.start.float()) * start_B + self.bias.float()
        return score_B
