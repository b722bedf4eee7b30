"""Dropout that does not cost more than the layers around it on a CPU.

torch draws one Bernoulli number after another there, about 12 ns each: more than a third of an encoder's step. Here
four 16-bit numbers come out of one 64-bit one, which rounds the rate to a multiple of 2**-16.
"""

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, drawn faster on a CPU; the draw follows from ``torch.manual_seed`` as there."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0 or not values.is_cpu:
            return super().forward(values)
        return values * kept(values.shape, self.p, values.dtype)


def kept(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """Zero with probability ``rate``, else what keeps the mean at one."""
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    count = shape.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy(drawn >= dropped).to(dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(shape)


def replace_dropouts(model: nn.Module) -> None:
    """Put ours in the place of every ``torch.nn.Dropout`` below ``model``."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
