"""Cross-entropy over a whole catalogue, piece by piece: no (positions, items) matrix is ever whole.

A piece's logits become its loss and both of its gradients while they lie in the cache, so memory does not grow with
positions x items, and the backward pass is a product with a number. Frozen items get no gradient, and none is made.
The same idea: Liger's fused linear cross-entropy, https://arxiv.org/abs/2410.10989. Shapes: N positions, V items,
D width.
"""

from typing import Any

import torch
from torch import Tensor

_PIECE = 2**20  # logits at a time: 4 MB


def catalogue_cross_entropy(states_ND: Tensor, items_VD: Tensor, target_N: Tensor) -> Tensor:
    """Mean of -log softmax(states . items)[target], fp32; ``target`` holds rows of ``items``. 0 where N is 0."""
    loss: Tensor = _CatalogueCrossEntropy.apply(states_ND.float(), items_VD.float(), target_N)  # type: ignore[no-untyped-call]
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, items_VD: Tensor, target_N: Tensor) -> Tensor:
        count, size = max(1, _PIECE // len(items_VD)), max(1, len(target_N))
        loss, states_grad = states_ND.new_zeros(()), torch.empty_like(states_ND)
        items_grad = torch.zeros_like(items_VD) if ctx.needs_input_grad[1] else None
        for start in range(0, len(states_ND), count):
            piece_PD, target_P1 = states_ND[start : start + count], target_N[start : start + count, None]
            share_PV = piece_PD @ items_VD.T
            chosen_P1 = share_PV.gather(1, target_P1)
            most_P1 = share_PV.amax(1, keepdim=True)
            total_P1 = share_PV.sub_(most_P1).exp_().sum(1, keepdim=True)
            loss += (total_P1.log() + most_P1 - chosen_P1).sum()
            share_PV.div_(total_P1)
            share_PV.scatter_add_(1, target_P1, torch.full_like(chosen_P1, -1.0))
            torch.mm(share_PV, items_VD, out=states_grad[start : start + count])
            if items_grad is not None:
                items_grad.addmm_(share_PV.T, piece_PD)
        ctx.save_for_backward(states_grad.div_(size), items_grad if items_grad is None else items_grad.div_(size))
        return loss / size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        states_grad, items_grad = ctx.saved_tensors
        return states_grad * grads[0], items_grad if items_grad is None else items_grad * grads[0], None
