"""Attention as plain matrix products, for training on a CPU, where the backward pass of torch's fused kernel is slow.

Heads that share keys are rows of one product, so no key is copied. Shapes: B sequences, H query heads, K key heads, T
queries, L keys, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

_NAME = "rayrec-products"
_HERE = ("cpu", "meta")  # meta: where a CPU's memory is counted
_FUSED_ALONE = ("softcap", "position_bias", "s_aux", "cache")  # what some architectures ask for beside a mask


def attend_by_products(decoder: Any) -> None:
    """Let ``decoder`` (of transformers) attend this way wherever gradients are asked on a CPU."""
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415  (seconds to import)
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    decoder.set_attn_implementation(_NAME)


def _attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; states of shape (B, T, H, D)."""
    fused = dropout or any(options.get(name) is not None for name in _FUSED_ALONE)
    if fused or query_BHTD.device.type not in _HERE or not torch.is_grad_enabled():
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query_BHTD,
            key_BKLD,
            value_BKLD,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            **options,
        )
        return found
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    return products(query_BHTD * scale, key_BKLD, value_BKLD, attention_mask).transpose(1, 2), None


def products(query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask_B1TL: Tensor | None) -> Tensor:
    """softmax(query . key) . value, shape (B, H, T, D); ``query`` is scaled already.

    ``mask`` is True where attention is allowed; None: to all keys up to the query's own, the last query seeing all.
    """
    rows, heads, queries, width = query_BHTD.shape
    groups, keys = key_BKLD.shape[1:3]
    each = heads // groups
    if mask_B1TL is None:
        causal_TL = torch.ones(queries, keys, dtype=torch.bool, device=query_BHTD.device).tril(keys - queries)
        mask_B1TL = causal_TL[None, None]
    query = query_BHTD.reshape(rows * groups, each * queries, width)
    score = torch.bmm(query, key_BKLD.reshape(rows * groups, keys, width).transpose(1, 2))
    score = score.view(rows, groups, each, queries, keys).masked_fill_(~mask_B1TL[:, :, None], -torch.inf)
    share = score.softmax(-1).view(rows * groups, each * queries, keys)
    mixed: Tensor = torch.bmm(share, value_BKLD.reshape(rows * groups, keys, width))
    return mixed.view(rows, heads, queries, width)
