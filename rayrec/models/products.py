"""Attention by plain matrix products: for training on a CPU, where the backward pass of torch's fused kernel is slow.

Heads that share keys are rows of one product, so no key is copied. Shapes: B sequences, H query heads, K key heads, T
queries, L keys, D width of a head.
"""

import torch
from torch import Tensor


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
    # Added by the product itself: filling in takes a pass over the scores of all heads, and another one backwards.
    unseen_B1TL = torch.zeros_like(mask_B1TL, dtype=query_BHTD.dtype).masked_fill_(~mask_B1TL, -torch.inf)
    score = torch.baddbmm(
        unseen_B1TL[:, None].expand(rows, groups, each, queries, keys).reshape(rows * groups, each * queries, keys),
        query_BHTD.reshape(rows * groups, each * queries, width),
        key_BKLD.reshape(rows * groups, keys, width).transpose(1, 2),
    )
    mixed: Tensor = torch.bmm(score.softmax(-1), value_BKLD.reshape(rows * groups, keys, width))
    return mixed.view(rows, heads, queries, width)
