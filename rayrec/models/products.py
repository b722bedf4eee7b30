"""Attention by plain matrix products: for a CPU, where torch's fused kernel is slow backwards, and in bf16.

Heads that share keys are rows of one product, so no key is copied. Shapes: B sequences, H query heads, K key heads, T
queries, L keys, D width of a head.
"""

import torch
from torch import Tensor, nn

_HERE = ("cpu", "meta")  # meta: where a CPU's memory is counted
_READ_SCORES = 2**24  # of a layer, that are held at a time where nothing learns
_AT_ONCE = 32  # numbers of bf16 that a CPU's kernels take at once; what a softmax has left over goes one by one


class Mask:
    """Where attention is allowed; what products add to their scores for it is made once for all layers."""

    def __init__(self, seen_B1TL: Tensor) -> None:
        """``seen`` is True where attention is allowed; of one row, it holds for all rows."""
        self.seen_B1TL = seen_B1TL
        self._added: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def added(self, groups: int, each: int, dtype: torch.dtype) -> Tensor:
        """0 or -inf for K ``groups`` of ``each`` heads, shape (B x K, H / K x T, L), or (1, ...) for all alike.

        In bf16 L goes up to whole pieces of a softmax, of keys that are none.
        """
        asked = groups, each, dtype
        if asked not in self._added:
            none = short_of_pieces(self.seen_B1TL.shape[-1], dtype)
            seen_BTL = nn.functional.pad(self.seen_B1TL[:, 0], (0, none))
            unseen_BTL = torch.zeros_like(seen_BTL, dtype=dtype).masked_fill_(~seen_BTL, -torch.inf)
            of_heads = unseen_BTL.repeat(1, each, 1)
            self._added[asked] = of_heads if len(of_heads) == 1 else of_heads.repeat_interleave(groups, 0)
        return self._added[asked]


def short_of_pieces(count: int, dtype: torch.dtype) -> int:
    """How many keys of a softmax, or rows of a product, are missing to whole pieces."""
    return -count % _AT_ONCE if dtype is torch.bfloat16 else 0


def causal(queries: int, keys: int, device: torch.device) -> Mask:
    """To all keys up to the query's own, the last query seeing all."""
    return Mask(torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None])


def quicker_than_fused(query_BHTD: Tensor, key_BKLD: Tensor) -> bool:
    """On a CPU where something learns, and in bf16, which the fused kernel is slow to read.

    Products hold the scores of all pairs, which the fused kernel does not: where nothing learns only so many.
    """
    if query_BHTD.device.type not in _HERE or torch.is_grad_enabled():
        return query_BHTD.device.type in _HERE
    scores = query_BHTD.shape[:-1].numel() * key_BKLD.shape[2]
    return query_BHTD.dtype is torch.bfloat16 and scores <= _READ_SCORES


def products(query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask: Mask) -> Tensor:
    """softmax(query . key) . value, shape (B, H, T, D); ``query`` is scaled already."""
    rows, heads, queries, width = query_BHTD.shape
    groups = key_BKLD.shape[1]
    each = heads // groups
    added = mask.added(groups, each, query_BHTD.dtype)
    keys = added.shape[-1]
    if none := keys - key_BKLD.shape[2]:
        key_BKLD, value_BKLD = (nn.functional.pad(state, (0, 0, 0, none)) for state in (key_BKLD, value_BKLD))
    # Added by the product itself: filling in takes a pass over the scores of all heads, and another one backwards.
    score = torch.baddbmm(
        added,
        query_BHTD.reshape(rows * groups, each * queries, width),
        key_BKLD.reshape(rows * groups, keys, width).transpose(1, 2),
    )
    mixed: Tensor = torch.bmm(score.softmax(-1), value_BKLD.reshape(rows * groups, keys, width))
    return mixed.view(rows, heads, queries, width)
