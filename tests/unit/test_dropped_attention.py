"""Attention with dropout against the same by plain products and autograd."""

import math

import pytest
import torch
from torch import Tensor

from rayrec.models.dropped_attention import attend_with_dropout

SCALE = 1.25


def slow(projected: tuple[Tensor, ...], bias_BQL: Tensor, is_kept_BHQL: Tensor) -> Tensor:
    rows, heads = is_kept_BHQL.shape[:2]
    width = sum(vectors.shape[2] for vectors in projected) // 3
    parts = [part for vectors in projected for part in vectors.split(width, 2)]
    query, key, value = (part.reshape(rows, part.shape[1], heads, -1).transpose(1, 2) for part in parts)
    score_BHQL = query @ key.transpose(2, 3) / math.sqrt(width // heads)
    share_BHQL = score_BHQL.masked_fill(bias_BQL.unsqueeze(1) == -torch.inf, -torch.inf).softmax(-1)
    return (share_BHQL * is_kept_BHQL * SCALE @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize(("rows", "length", "heads"), [(3, 7, 4), (1, 7, 1), (5, 1, 2), (1, 1, 1)])
def test_values_and_gradients_are_those_of_plain_products(rows: int, length: int, heads: int, newest: bool) -> None:
    torch.manual_seed(0)
    width, asked = 8 * heads, 1 if newest else length
    shapes = [(asked, width), (length, 2 * width)] if newest else [(length, 3 * width)]
    projected = tuple(torch.randn(rows, *shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    before = [vectors.detach().clone() for vectors in projected]
    unseen_QL = torch.ones(length, length, dtype=torch.bool).triu(1)[-asked:]
    bias_BQL = torch.zeros(rows, asked, length, dtype=torch.double).masked_fill(unseen_QL, -torch.inf)
    is_kept_BHQL = (torch.rand(rows, heads, asked, length) < 1 / SCALE).double()
    grad_BQD = torch.randn(rows, asked, width, dtype=torch.double)

    expected = slow(projected, bias_BQL, is_kept_BHQL)
    expected_grads = torch.autograd.grad(expected, projected, grad_BQD)
    found = attend_with_dropout(projected, bias_BQL, is_kept_BHQL, SCALE)
    found_grads = torch.autograd.grad(found, projected, grad_BQD)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for vectors, same in zip(projected, before, strict=True):
        assert torch.equal(vectors, same)
