"""Attention of suffixes behind prefixes that they share: no key is copied for a row, and no padding is computed.

All suffixes pass through the decoder as one sequence without padding. Only in the attention they part: against the
prefixes' keys as one product a prefix, against their own as one product a row; the sums of exponents tell how much of
either the softmax over both takes. The same idea for many samples of one prompt: Hydragen,
https://arxiv.org/abs/2402.05099.

Shapes: U prefixes of P tokens, B rows, S tokens of the longest suffix, N tokens of all suffixes, Q of all that stand
behind one prefix, H query heads, K key heads, G heads that share a key, D width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rayrec.batch import SplitPrompt
from rayrec.models.products import quicker_than_fused


class Suffixes(NamedTuple):
    """Where the tokens of all suffixes lie, row after row, without padding."""

    row_N: Tensor
    place_N: Tensor  # in B x S
    position_N: Tensor  # in the prompt
    last_B: Tensor  # a row's last token in N

    @classmethod
    def of(cls, prompt: SplitPrompt) -> "Suffixes":
        row_N, column_N = filled(prompt).nonzero(as_tuple=True)
        return cls(
            row_N=row_N,
            place_N=row_N * prompt.suffix_BS.shape[1] + column_N,
            position_N=prompt.prefix_length_U[prompt.prefix_of_B[row_N]] + column_N,
            last_B=prompt.suffix_length_B.cumsum(0) - 1,
        )


class Behind(NamedTuple):
    """The prefixes' keys and values of every layer, and who stands behind which."""

    keys: list[Tensor]  # a layer's (U, K, P, D)
    values: list[Tensor]
    padding_UP: Tensor | None  # True where a prefix has ended; None: all are of one length
    token_UQ: Tensor  # N's index of a prefix's tokens; past their end any
    token_BS: Tensor  # the same of a row's
    place_N: Tensor  # in U x Q
    own: Suffixes


def lay_out(prompt: SplitPrompt, keys: list[Tensor], values: list[Tensor]) -> Behind:
    """Tokens in the order of the rows; ``keys`` and ``values`` as the prefixes left them."""
    own, prefixes = Suffixes.of(prompt), len(prompt.prefix_UP)
    rows, longest = prompt.suffix_BS.shape
    of_N = prompt.prefix_of_B[own.row_N]
    device = of_N.device
    by_prefix_N = of_N.argsort(stable=True)
    tokens_U = torch.bincount(of_N, minlength=prefixes)
    sorted_N = torch.arange(len(of_N), device=device)
    at_N = torch.empty_like(sorted_N)
    at_N[by_prefix_N] = sorted_N - (tokens_U.cumsum(0) - tokens_U)[of_N[by_prefix_N]]
    most = int(tokens_U.max())
    place_N = of_N * most + at_N
    padding_UP = torch.arange(keys[0].shape[2], device=device) >= prompt.prefix_length_U[:, None]
    return Behind(
        keys=keys,
        values=values,
        padding_UP=padding_UP if bool(padding_UP.any()) else None,
        token_UQ=_inverse(place_N, prefixes * most).view(prefixes, most),
        token_BS=_inverse(own.place_N, rows * longest).view(rows, longest),
        place_N=place_N,
        own=own,
    )


def filled(prompt: SplitPrompt) -> Tensor:
    """Suffix tokens that are no padding, shape (B, S)."""
    column_S = torch.arange(prompt.suffix_BS.shape[1], device=prompt.suffix_BS.device)
    return column_S < prompt.suffix_length_B[:, None]


def _inverse(place_N: Tensor, places: int) -> Tensor:
    found = place_N.new_zeros(places)
    found[place_N] = torch.arange(len(place_N), device=place_N.device)
    return found


def attend_behind(behind: Behind, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor) -> Tensor:
    """softmax(query . keys) . values over a token's prefix and its suffix up to itself, (N, H, D)."""
    heads, tokens, width = query_HND.shape
    groups = len(key_KND)
    query_NKGD = query_HND.transpose(0, 1).reshape(tokens, groups, heads // groups, width)
    query_UQKGD = (
        query_NKGD[None] if len(behind.token_UQ) == 1 else query_NKGD[behind.token_UQ]
    )  # of one: all, in order
    padding_UP = behind.padding_UP
    shared = _part(
        query_UQKGD,
        behind.keys[layer],
        behind.values[layer],
        None if padding_UP is None else padding_UP[:, None, None],
    )
    size = behind.token_BS.shape[1]
    later_SS = torch.ones(size, size, dtype=torch.bool, device=query_HND.device).triu(1)
    own = _part(
        query_NKGD[behind.token_BS],
        key_KND.transpose(0, 1)[behind.token_BS].transpose(1, 2),
        value_KND.transpose(0, 1)[behind.token_BS].transpose(1, 2),
        later_SS.repeat_interleave(heads // groups, 0)[None, None],
    )
    return _joined(shared, behind.place_N, own, behind.own.place_N).flatten(1, 2)


class _Part(NamedTuple):
    """A softmax over some of the keys."""

    mixed: Tensor  # (places, K, G, D)
    log_sum: Tensor  # (places, K, G, 1), of the exponents


def _part(query_RQKGD: Tensor, key_RKLD: Tensor, value_RKLD: Tensor, unseen: Tensor | None) -> _Part:
    """For R sequences of Q queries each; ``unseen`` goes with (R, K, Q * G, L)."""
    rows, queries, groups, each, width = query_RQKGD.shape
    query = query_RQKGD.transpose(1, 2).reshape(rows, groups, queries * each, width)
    fused = query.device.type == "cpu" and not quicker_than_fused(query, key_RKLD)
    found = (_fused if fused else _products)(query, key_RKLD, value_RKLD, unseen)
    shape = (rows, groups, queries, each, -1)
    return _Part(*(x.view(shape).transpose(1, 2).flatten(0, 1) for x in found))


def _fused(query_RKTD: Tensor, key_RKLD: Tensor, value_RKLD: Tensor, unseen: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's kernel for the CPU; what torch offers of it keeps the sum of the exponents to itself."""
    mask = None
    if unseen is not None:
        mask = torch.zeros_like(unseen, dtype=query_RKTD.dtype).masked_fill_(unseen, -torch.inf)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query_RKTD, key_RKLD, value_RKLD, attn_mask=mask, scale=1.0)  # type: ignore[no-any-return]


def _products(query_RKTD: Tensor, key_RKLD: Tensor, value_RKLD: Tensor, unseen: Tensor | None) -> tuple[Tensor, Tensor]:
    score = query_RKTD @ key_RKLD.transpose(2, 3)
    if unseen is not None:
        score = score.masked_fill_(unseen, -torch.inf)
    most = score.detach().amax(-1, keepdim=True)
    weight = score.sub_(most).exp_()
    total = weight.sum(-1, keepdim=True)
    return weight @ value_RKLD / total, total.log().float() + most


def _joined(one: _Part, place_N: Tensor, other: _Part, other_place_N: Tensor) -> Tensor:
    """One softmax over the keys of both, shape (N, K, G, D)."""
    other_mixed = other.mixed[other_place_N]
    share = torch.sigmoid(one.log_sum[place_N] - other.log_sum[other_place_N])
    return other_mixed + (one.mixed[place_N] - other_mixed) * share.to(other_mixed.dtype)
