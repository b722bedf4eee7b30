"""Hybrids of LLMSeqSim: its lists with those of another ranker, or with how popular items are.

Paper: https://arxiv.org/abs/2402.01339; in detail as in its published code, ``main/hybrids`` of
https://github.com/dh-r/LLM-Sequential-Recommendation. There popularity is counted over the test sessions too; here over
those of training alone. Lists are best first, 0 is an empty place. Shapes: S sessions, K places of a list, L of a
longer one, V item ids with 0.
"""

import numpy as np
from numpy.typing import NDArray

from rayrec.sessions import Index, Sessions

Flags = NDArray[np.bool_]


def popular_items(train: Sessions, items: int, quantile: float) -> Flags:
    """Whether an item is in at least as many training sessions as that quantile of all items; by id, shape (V,).

    An item that training lacks is not popular, and does not count among all.

    Raises:
        ValueError: an id is above ``items``.
    """
    train.require(items)
    _, item = np.divmod(np.unique(train.owners * (items + 1) + train.items), items + 1)
    held_V = np.bincount(item, minlength=items + 1)
    popular_V: Flags = held_V >= np.quantile(held_V[held_V > 0], quantile)
    return popular_V


def with_first(first_SK: Index, second_SK: Index, rank: int) -> Index:
    """EmbeddingEnsemble: the ``rank`` best of the first list, then those of the second that are not among them; (S, K).

    The code also has a threshold of the first list's scores in the place of a rank. It fits one embedding: of another,
    cosines are of another size.
    """
    head_SR, rest_SK = first_SK[:, :rank], second_SK.copy()
    for column_S in head_SR.T:
        rest_SK[rest_SK == column_S[:, None]] = 0
    return _closed(np.hstack([head_SR, rest_SK]), second_SK.shape[1])


def by_last_item(prompts: Sessions, sequential_SK: Index, similar_SK: Index, popular_V: Flags) -> Index:
    """LLMSeqSim&Sequential: the sequential model's list if a prompt's last item is popular, else LLMSeqSim's; (S, K).

    An empty prompt has no popular item.
    """
    last_S, has_items_S = np.zeros(len(prompts), np.int64), prompts.lengths > 0
    last_S[has_items_S] = prompts.items[prompts.offsets[1:][has_items_S] - 1]
    return np.where(popular_V[last_S][:, None], sequential_SK, similar_SK)


def without_unpopular(lists_SL: Index, popular_V: Flags, k: int) -> Index:
    """LLMSeqSim&Popularity: ``k`` items of longer lists from which unpopular ones go while more than ``k`` are there.

    They go from the best on, as in the code: where too few are popular, the last of the others stay in their places. It
    may also leave out what is much like an item before it; its best settings, on all of the paper's data, do not.
    """
    is_item_SL = lists_SL > 0
    unpopular_SL = is_item_SL & ~popular_V[lists_SL]
    spare_S1 = is_item_SL.sum(axis=1, keepdims=True) - k
    gone_SL = unpopular_SL & (unpopular_SL.cumsum(axis=1) <= spare_S1)
    return _closed(np.where(gone_SL, 0, lists_SL), k)


def _closed(lists_SL: Index, k: int) -> Index:
    """The first ``k`` items, empty places last."""
    order = np.argsort(lists_SL == 0, axis=1, kind="stable")
    return np.take_along_axis(lists_SL, order, axis=1)[:, :k]
