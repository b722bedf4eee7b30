"""Attention that transformers calls in place of its own: torch's kernel, plain products, or behind shared prefixes.

Shapes: B sequences, H query heads, K key heads, T queries, L keys, D width of a head.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rayrec.models.behind import Behind, attend_behind
from rayrec.models.copies import Copies, attend_copies
from rayrec.models.packing import Pieces
from rayrec.models.products import Mask, causal, products, quicker_than_fused

_FUSED, _PRODUCTS = "rayrec-fused", "rayrec-products"
_FUSED_ALONE = ("softcap", "position_bias", "s_aux", "cache")  # what some architectures ask for beside a mask


def replace_attention(decoder: Any, *, products: bool) -> bool:
    """Let ``decoder`` (of transformers) attend this way; ``products``: on a CPU, wherever they are quicker.

    False where its attention cannot be replaced, or is more than a softmax over keys; it is left as it was.
    """
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415  (seconds to import)
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    if decoder.config._attn_implementation != "sdpa":  # what transformers chooses where the architecture allows it
        return False
    for name, by_products in ((_FUSED, False), (_PRODUCTS, True)):
        AttentionInterface.register(name, partial(_attend, by_products=by_products))
        AttentionMaskInterface.register(name, sdpa_mask)
    decoder.set_attn_implementation(_PRODUCTS if products else _FUSED)
    return True


def _attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    attention_mask: Tensor | None,
    *,
    by_products: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Behind | Copies | Pieces | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; states of shape (B, T, H, D).

    ``layout``: the one sequence is of suffixes behind their prefixes, or of pieces, each on its own.
    """
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is not None:
        states = query_BHTD[0] * scale, key_BKLD[0], value_BKLD[0]
        mixed_NHD = _attend_laid_out(module, layout, states, by_products=by_products)
        if padding := query_BHTD.shape[2] - len(mixed_NHD):
            mixed_NHD = nn.functional.pad(mixed_NHD, (0, 0, 0, 0, 0, padding))
        return mixed_NHD[None], None
    fused = dropout or any(options.get(name) is not None for name in _FUSED_ALONE)
    if fused or not (by_products and quicker_than_fused(query_BHTD, key_BKLD)):
        options |= {"scaling": scaling, "dropout": dropout}
        return _of_transformers(module, query_BHTD, key_BKLD, value_BKLD, attention_mask, **options)
    if attention_mask is None:
        mask = causal(query_BHTD.shape[2], key_BKLD.shape[2], query_BHTD.device)
    else:
        mask = Mask(attention_mask)
    return products(query_BHTD * scale, key_BKLD, value_BKLD, mask).transpose(1, 2), None


def _attend_laid_out(
    module: nn.Module, layout: Behind | Copies | Pieces, states: tuple[Tensor, ...], *, by_products: bool
) -> Tensor:
    """Shape (N, H, D), of the N tokens of ``layout``; in ``states`` padding may stand behind them."""
    if isinstance(layout, Pieces):
        return attend_pieces(layout, *states)
    query_HND, key_KND, value_KND = (state[:, : len(layout.own.row_N)] for state in states)
    layer: Any = module.layer_idx
    if isinstance(layout, Behind):
        return attend_behind(layout, layer, query_HND, key_KND, value_KND)
    attend = partial(_quicker if by_products else _fused, module)
    return attend_copies(layout, layer, query_HND, key_KND, value_KND, attend=attend)


def attend_pieces(pieces: Pieces, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor) -> Tensor:
    """softmax(query . key) . value of each piece by plain products, shape (N, H, D)."""
    tokens = sum(pieces.lengths)
    states = (torch.split(state[None, :, :tokens], pieces.lengths, 2) for state in (query_HND, key_KND, value_KND))
    mixed_1HND = torch.cat([products(*piece) for piece in zip(*states, pieces.masks, strict=True)], dim=2)
    return mixed_1HND[0].transpose(0, 1)


def _quicker(module: nn.Module, query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask: Mask) -> Tensor:
    if quicker_than_fused(query_BHTD, key_BKLD):
        return products(query_BHTD, key_BKLD, value_BKLD, mask)
    return _fused(module, query_BHTD, key_BKLD, value_BKLD, mask)


def _fused(module: nn.Module, query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask: Mask) -> Tensor:
    """The same as ``products`` by torch's kernel."""
    states_BTHD, _ = _of_transformers(module, query_BHTD, key_BKLD, value_BKLD, mask.seen_B1TL, scaling=1.0)
    return states_BTHD.transpose(1, 2)


def _of_transformers(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    mask_B1TL: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415

    found: tuple[Tensor, None] = sdpa_attention_forward(module, query_BHTD, key_BKLD, value_BKLD, mask_B1TL, **options)
    return found
