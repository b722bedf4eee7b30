"""Attention as products against torch's fused kernel: values and gradients, heads that share keys, every mask."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayrec.models.loading import load_backbone
from rayrec.models.products import Mask, causal, products

ROWS, HEADS, GROUPS, QUERIES, KEYS, WIDTH = 2, 6, 3, 5, 8, 4


def masks() -> dict[str, Tensor | None]:
    torch.manual_seed(1)
    own = torch.rand(ROWS, 1, QUERIES, KEYS) > 0.4
    own[..., 0] = True
    return {"own": own, "shared by all rows": own[:1], "causal": None}


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_values_and_gradients_are_those_of_the_fused_kernel(mask: Tensor | None) -> None:
    torch.manual_seed(0)
    given = [
        torch.randn(shape, requires_grad=True)
        for shape in ((ROWS, HEADS, QUERIES, WIDTH), (ROWS, GROUPS, KEYS, WIDTH), (ROWS, GROUPS, KEYS, WIDTH))
    ]
    seen = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES)[None, None] if mask is None else mask
    given_mask = causal(QUERIES, KEYS, torch.device("cpu")) if mask is None else Mask(mask)
    ours = products(given[0] * 0.3, given[1], given[2], given_mask)
    theirs = F.scaled_dot_product_attention(*given, attn_mask=seen, scale=0.3, enable_gqa=True)
    weight = torch.randn_like(theirs)
    grads = [torch.autograd.grad((found * weight).sum(), given) for found in (ours, theirs)]
    for found, expected in zip((ours, *grads[0]), (theirs, *grads[1]), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The queries that backbones gave to products."""
    given: list[Tensor] = []

    def watched(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        given.append(query)
        return products(query, key, value, mask)

    monkeypatch.setattr("rayrec.models.attention.products", watched)
    return given


def test_a_backbone_attends_so_where_it_learns(tiny: Path, asked: list[Tensor]) -> None:
    backbone = load_backbone(tiny, answers=(1, 2), yes_only=False, dtype=torch.float32)
    states, length = torch.randn(2, 7, backbone.hidden), torch.tensor([7, 5])
    fused = backbone.answer(states, length)
    backbone.replace_attention(products=True)
    learning = backbone.answer(states, length)
    assert len(asked) == 2  # layers
    with torch.no_grad():
        still = backbone.answer(states, length)
    assert len(asked) == 2
    for found in (learning, still):
        torch.testing.assert_close(found, fused, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_and_in_bf16_where_it_does_not(tiny: Path, asked: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(tiny, answers=(1, 2), yes_only=False, dtype=torch.bfloat16)
    states, length = torch.randn(2, 7, backbone.hidden, dtype=torch.bfloat16), torch.tensor([7, 5])
    fused = backbone.answer(states, length)
    backbone.replace_attention(products=True)
    torch.testing.assert_close(backbone.answer(states, length), fused, atol=0.02, rtol=0.02)
    assert len(asked) == 2  # layers
    scores = asked[0].shape[:-1].numel() * 7
    monkeypatch.setattr("rayrec.models.products._READ_SCORES", scores)
    backbone.answer(states, length)
    assert len(asked) == 4
    monkeypatch.setattr("rayrec.models.products._READ_SCORES", scores - 1)
    torch.testing.assert_close(backbone.answer(states, length), fused, atol=0, rtol=0)
    assert len(asked) == 4  # too many to hold


@pytest.mark.parametrize("keys", [31, 32, 41])
@torch.no_grad()
def test_products_of_bf16_see_no_key_more(keys: int) -> None:
    """A softmax takes 32 of them at once; what fills the last piece up would have the highest score here."""
    torch.manual_seed(0)
    key, value = torch.rand(2, 1, 1, keys, 4).bfloat16()
    query = -20 * torch.ones(1, 2, keys, 4).bfloat16()
    found = products(query, key, value, causal(keys, keys, query.device))
    expected = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), is_causal=True, scale=1.0, enable_gqa=True
    )
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
