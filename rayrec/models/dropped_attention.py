"""Attention with dropout on a CPU, where torch's fused kernel knows none, with a backward pass of its own.

The scores of all heads are an encoder's largest tensors and lie outside the caches: autograd's own steps over them, a
division, masks, copies and their gradients, cost more than the products.

Shapes: B sequences, Q queries, L keys, H heads, D width, E = D / H.
"""

from typing import Any

import torch
from torch import Tensor


def attend_with_dropout(
    projected: tuple[Tensor, ...], bias_BQL: Tensor, is_kept_BHQL: Tensor, kept_scale: float
) -> Tensor:
    """(softmax(query . key / sqrt(E) + bias) * is_kept * kept_scale) . value, shape (B, Q, D).

    ``projected``: queries, keys and values along the last dimension of one tensor, or queries, and keys with values.
    ``is_kept`` holds zeros and ones of the states' type.
    """
    mixed: Tensor = _AttendWithDropout.apply(bias_BQL, is_kept_BHQL, kept_scale, *projected)  # type: ignore[no-untyped-call]
    return mixed


class _AttendWithDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias_BQL: Tensor, is_kept_BHQL: Tensor, kept_scale: float, *projected: Tensor) -> Tensor:
        rows, heads = is_kept_BHQL.shape[:2]
        each = projected[-1].shape[2] // heads // (3 if len(projected) == 1 else 2)
        split = [_by_head(vectors, heads, each) for vectors in projected]
        query, key, value = (vectors for several in split for vectors in several)
        query.mul_(each**-0.5)
        value.mul_(kept_scale)
        score = torch.bmm(query, key.transpose(1, 2)).view_as(is_kept_BHQL).add_(bias_BQL.unsqueeze(1))
        share = score.softmax(-1)
        dropped = torch.mul(share, is_kept_BHQL, out=score).flatten(0, 1)
        mixed = torch.bmm(dropped, value)
        ctx.save_for_backward(share.flatten(0, 1), dropped, mixed, *split)
        ctx.rows, ctx.kept_scale = rows, kept_scale
        return _joined(mixed.unsqueeze(0), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        share, dropped, mixed, *split = ctx.saved_tensors
        query, key, value = (vectors for several in split for vectors in several)
        (grad,) = _by_head(grads[0], len(mixed) // ctx.rows, mixed.shape[2])
        split_grads = [torch.empty_like(several) for several in split]
        query_grad, key_grad, value_grad = (vectors for several in split_grads for vectors in several)
        torch.bmm(dropped.transpose(1, 2), grad, out=value_grad).mul_(ctx.kept_scale)
        score_grad = torch.bmm(grad, value.transpose(1, 2)).mul_(dropped)
        # What softmax takes off, the mean over keys, is known from the result: https://arxiv.org/abs/2205.14135, B.2.
        score_grad.addcmul_(share, (grad * mixed).sum(-1, keepdim=True), value=-1)
        torch.bmm(score_grad, key, out=query_grad).mul_(mixed.shape[2] ** -0.5)
        torch.bmm(score_grad.transpose(1, 2), query, out=key_grad)
        return None, None, None, *(_joined(several, ctx.rows) for several in split_grads)


def _by_head(vectors: Tensor, heads: int, each: int) -> Tensor:
    """(B, L, N * D) -> a copy (N, B * H, L, E)."""
    by_head = vectors.reshape(*vectors.shape[:2], -1, heads, each).permute(2, 0, 3, 1, 4)
    return by_head.clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _joined(several: Tensor, rows: int) -> Tensor:
    """(N, B * H, L, E) -> (B, L, N * D)."""
    return several.view(len(several), rows, -1, *several.shape[2:]).permute(1, 3, 0, 2, 4).flatten(2)
