"""Rows of items as encoders read them, and weights that all show."""

import torch
from torch import Tensor, nn


def padded(rows: list[list[int]], width: int = 0) -> Tensor:
    """Left-padded with zeros to ``width``, or to the longest if that is more; shape (B, L)."""
    width = max(width, *map(len, rows), 1)
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])


@torch.no_grad()
def shake(model: nn.Module, by: float = 0.3) -> None:
    """Weights far from their start, so that every one shows; row 0 of a table, padding or the unknown, stays zero."""
    for name, parameter in model.named_parameters():
        parameter.add_(by * torch.randn_like(parameter))
        if name.startswith(("user", "item", "label")):
            parameter[0].zero_()
