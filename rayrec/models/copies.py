"""Attention of suffixes that see a copy of their prefix's keys and values, then themselves: they may learn.

All suffixes pass through the decoder as one sequence without padding; only their attention is padded. Shapes: U
prefixes of P tokens, B rows, S tokens of the longest suffix, N tokens of all suffixes, E keys of nothing, L = P + E + S
keys, H query heads, K key heads, D width of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rayrec.batch import SplitPrompt
from rayrec.models.behind import Suffixes
from rayrec.models.products import Mask, short_of_pieces

Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]  # as ``products``


class Copies(NamedTuple):
    """The prefixes' keys and values of every layer, without gradient, and what each row sees."""

    keys: list[Tensor]  # a layer's (U, K, P, D)
    values: list[Tensor]
    prefix_of_B: Tensor
    longest: int  # S
    empty: int  # E, which no row sees: up to whole pieces of a softmax
    mask: Mask  # of shape (B, 1, S, L), or (1, 1, S, L) where all rows see alike
    own: Suffixes


def lay_copies(prompt: SplitPrompt, keys: list[Tensor], values: list[Tensor]) -> Copies:
    """Tokens in the order of the rows; ``keys`` and ``values`` as the prefixes left them."""
    start_B = prompt.prefix_length_U[prompt.prefix_of_B]
    longest = prompt.suffix_BS.shape[1]
    known_BP = torch.arange(keys[0].shape[2], device=start_B.device) < start_B[:, None]
    if bool(known_BP.all()):
        known_BP = known_BP[:1]
    empty = short_of_pieces(known_BP.shape[1] + longest, keys[0].dtype)
    known_BP = nn.functional.pad(known_BP, (0, empty))
    own_SS = torch.ones(longest, longest, dtype=torch.bool, device=start_B.device).tril()
    seen_BSL = torch.cat([known_BP[:, None].expand(-1, longest, -1), own_SS.expand(len(known_BP), -1, -1)], dim=-1)
    return Copies(
        keys=keys,
        values=values,
        prefix_of_B=prompt.prefix_of_B,
        longest=longest,
        empty=empty,
        mask=Mask(seen_BSL[:, None]),
        own=Suffixes.of(prompt),
    )


def attend_copies(
    copies: Copies, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, attend: Attend
) -> Tensor:
    """softmax(query . keys) . values over a token's prefix and its suffix up to itself, (N, H, D)."""
    query_BHSD, key_BKSD, value_BKSD = (_padded(copies, state) for state in (query_HND, key_KND, value_KND))
    key_BKLD = _behind_prefix(copies, copies.keys[layer], key_BKSD)
    value_BKLD = _behind_prefix(copies, copies.values[layer], value_BKSD)
    mixed_BHSD = attend(query_BHSD, key_BKLD, value_BKLD, copies.mask)
    return mixed_BHSD.transpose(1, 2).flatten(0, 1).index_select(0, copies.own.place_N)


def _behind_prefix(copies: Copies, state_UKPD: Tensor, own_BKSD: Tensor) -> Tensor:
    """Shape (B, K, L, D), written once: memory takes longer here than what is computed of it."""
    rows, groups, _, width = own_BKSD.shape
    one = len(state_UKPD) == 1
    state_BKPD = state_UKPD.expand(rows, -1, -1, -1) if one else state_UKPD.index_select(0, copies.prefix_of_B)
    empty_BKED = own_BKSD.new_zeros(1, 1, 1, 1).expand(rows, groups, copies.empty, width)
    return torch.cat([state_BKPD, empty_BKED, own_BKSD], dim=2)


def _padded(copies: Copies, state_HND: Tensor) -> Tensor:
    """Shape (B, H, S, D), zeros where a suffix has ended."""
    rows, longest = len(copies.prefix_of_B), copies.longest
    heads, _, width = state_HND.shape
    padded = state_HND.new_zeros(rows * longest, heads, width)
    return (
        padded.index_copy_(0, copies.own.place_N, state_HND.transpose(0, 1))
        .view(rows, longest, heads, width)
        .transpose(1, 2)
    )
