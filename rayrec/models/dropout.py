"""Dropout that does not cost more than the layers around it on a CPU.

torch draws one Bernoulli number after another there, about 12 ns each: more than a third of an encoder's step. Here
four 16-bit numbers come out of one 64-bit one, which rounds the rate to a multiple of 2**-16.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, drawn faster on a CPU; the draw follows from ``torch.manual_seed`` as there."""

    def forward(self, values: Tensor) -> Tensor:
        return values * self._kept(values) if self.draws(values) else super().forward(values)

    def onto(self, states: Tensor, values: Tensor) -> Tensor:
        """``states`` plus the dropout of ``values``, in one pass over both."""
        if not self.draws(values):
            return states + super().forward(values)
        sums: Tensor = _SumWithKept.apply(states, values, self._kept(values))  # type: ignore[no-untyped-call]
        return sums

    def draws(self, values: Tensor) -> bool:
        """Whether numbers of our own drop some of ``values``; torch.compile would break its graph at numpy's."""
        return self.training and self.p > 0 and values.is_cpu and not torch.compiler.is_compiling()

    def _kept(self, values: Tensor) -> Tensor:
        return is_kept(values.shape, self.p, values.dtype).mul_(kept_scale(self.p))


class _SumWithKept(torch.autograd.Function):
    """states + values * kept; torch's own ``addcmul`` goes over the gradient of ``values`` twice."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, values: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return torch.addcmul(states, values, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grads[0], grads[0] * kept, None


def is_kept(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """Zero with probability ``rate``, else one."""
    count = shape.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    ones = (drawn >= _dropped(rate)).view(np.uint8)  # a bool becomes a float four times as slowly
    return torch.from_numpy(ones).to(dtype).view(shape)


def kept_scale(rate: float) -> float:
    """What is kept times this keeps the mean."""
    return _LEVELS / (_LEVELS - _dropped(rate))


def _dropped(rate: float) -> int:
    """Levels of a 16-bit number that are dropped; never all."""
    return min(round(rate * _LEVELS), _LEVELS - 1)


def replace_dropouts(model: nn.Module) -> None:
    """Put ours in the place of every ``torch.nn.Dropout`` below ``model``."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
