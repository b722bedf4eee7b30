"""Metrics of ranked lists for next-item prompts: arrays in, one number a session out.

A session s has a ranked list R of ids, best first, and a set T of held-out items, one or more. Training gives n_i, the
events of item i, N their sum, and P_k, the k items of largest n_i, the lower id first among equals; an item that never
occurs in training (a cold one) is in no P_k. With r_j the j-th id of R and [..] 1 or 0:

- ndcg@k = sum_{j <= k} [r_j in T] / log2(j + 1)  over  sum_{j <= min(|T|, k)} 1 / log2(j + 1).
- hr@k = [some r_j in T, j <= k]. mrr@k = 1 / (the first such j), 0 without one.
- serendipity@k = |{r_1 .. r_k} and T \\ P_k| / min(|T \\ P_k|, k), 0 where T \\ P_k is empty: Ge et al. 2010,
  https://doi.org/10.1145/1864708.1864761.
- novelty@k = mean over r_1 .. r_k of -log2(max(n_i, 1) / N), in bits, 0 for an empty list: Zhou et al. 2010,
  https://doi.org/10.1073/pnas.1000488107.
- coverage@k = |union of all sessions' r_1 .. r_k| / items, of many sessions only.

An id of 0 is no item: an empty place that moves nothing up. A list may be shorter than k; ndcg and serendipity still
divide by min(.., k), and novelty is the mean over what is there.

Paper: https://arxiv.org/abs/2402.01339. Its code (github.com/dh-r/LLM-Sequential-Recommendation) differs so: it counts
n_i over training and test rows; mrr is the mean of 1 / j over all hits, equal where |T| = 1; serendipity divides by
min(|T \\ P_k|, length of the list), equal where |T| = 1; novelty lets a cold item add 0, as if nothing were known
better. RecTools 0.19: ``NDCG`` equals ours with ``divide_by_achievable=True`` only; ``HitRate``, ``MRR`` and
``CatalogCoverage(normalize=True)`` are equal; ``MeanInvUserFreq`` is ours with users in place of events, so that it is
less by log2(N / users) where nobody has an item twice; its ``Serendipity`` is another metric. RePlay: ``NDCG``,
``HitRate``, ``MRR`` equal, ``Coverage`` divides by the items that occur in the log, ``Surprisal`` is
``MeanInvUserFreq`` / log2(users) with k as the divisor, ``Unexpectedness`` ignores T, ``Novelty`` is another metric.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rayrec.metrics.pointwise import FloatArray, IntArray
from rayrec.sessions import Sessions

BoolArray = npt.NDArray[np.bool_]

SESSION_METRICS: Final = ("ndcg", "hr", "mrr", "serendipity", "novelty")


def session_metrics(
    ranked: npt.ArrayLike, truth: Sessions, counts: npt.ArrayLike, ks: Sequence[int]
) -> dict[str, FloatArray]:
    """Each of ``SESSION_METRICS`` at each k, as "ndcg@20" -> shape (sessions,); a slice of sessions is a mask of it.

    Args:
        ranked: item ids, best first, 0 for none; shape (sessions, places). Lists of fewer than k places are allowed.
        truth: the held-out items of each session; what is there twice counts once.
        counts: events of each item in training, by id, as ``Sessions.counts`` gives them; shape (items + 1,).
        ks: cut-offs.

    Raises:
        ValueError: the shapes differ, a session has no held-out item, an id is outside the catalogue, an item is twice
            in a list, training has no event, or a k is below 1.
    """
    lists, events = np.asarray(ranked, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    _check(lists, truth, events, ks)
    wide = len(events)
    held = np.unique(truth.owners * wide + truth.items)
    owner, item = np.divmod(held, wide)
    places = lists + np.arange(len(lists))[:, None] * wide
    hits = held[np.minimum(np.searchsorted(held, places), len(held) - 1)] == places if len(held) else places < 0
    sizes = np.bincount(owner, minlength=len(lists))
    popular, bits = _by_popularity(events), _self_information(events)

    result = {}
    for k in ks:
        expected = np.zeros(wide, dtype=np.bool_)
        expected[popular[:k]] = True
        top, hit = lists[:, :k], hits[:, :k]
        unexpected = np.bincount(owner, ~expected[item], minlength=len(lists)).astype(np.int64)
        result[f"ndcg@{k}"] = _ndcg(hit, sizes, k)
        found: BoolArray = np.any(hit, axis=1)
        result[f"hr@{k}"] = found.astype(np.float64)
        result[f"mrr@{k}"] = (found / (1 + _first(hit))).astype(np.float64)
        result[f"serendipity@{k}"] = _share((hit & ~expected[top]).sum(axis=1), np.minimum(unexpected, k))
        result[f"novelty@{k}"] = _share(bits[top].sum(axis=1), (top > 0).sum(axis=1))
    return result


def catalogue_coverage(ranked: npt.ArrayLike, items: int, k: int) -> float:
    """coverage@k of some sessions' lists: the share of a catalogue of ``items`` that somebody is shown.

    It grows with the number of sessions, so compare equally many; a resample with replacement has fewer distinct
    sessions and a lower coverage, which is why no bootstrap interval is given.
    """
    top = np.unique(np.asarray(ranked)[:, :k])
    return int((top > 0).sum()) / items


def answer_shares(said: npt.ArrayLike, unknown: npt.ArrayLike, barred: npt.ArrayLike) -> dict[str, float | None]:
    """How many names stand in answers in words, and the shares of them that were mapped to another item, or to none.

    Args:
        said: names in each session's answer; shape (sessions,).
        unknown: of them those that no item has.
        barred: those of an item that may not stand where it is named.

    Returns:
        names; unknown and barred, as shares of them; mapped, the sum of the two. None for shares of no names.
    """
    names, *mapped = (int(np.sum(counts)) for counts in (said, unknown, barred))
    shares = [count / names if names else None for count in (*mapped, sum(mapped))]
    return dict(zip(("names", "unknown", "barred", "mapped"), (names, *shares), strict=True))


def _check(lists: IntArray, truth: Sessions, events: IntArray, ks: Sequence[int]) -> None:
    if lists.ndim != 2 or len(lists) != len(truth):
        raise ValueError(f"ranked has shape {lists.shape} for {len(truth)} sessions; it must be (sessions, places)")
    if (truth.lengths == 0).any():
        raise ValueError(f"session {int(np.argmin(truth.lengths))} has no held-out item")
    for name, ids in (("ranked", lists), ("truth", truth.items)):
        if ids.size and (ids.min() < 0 or ids.max() >= len(events)):
            raise ValueError(
                f"{name} has item {ids.max()} of a catalogue of {len(events) - 1}; ids go from 1, 0 is none"
            )
    ordered = np.sort(lists, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    if twice.any():
        session, place = np.argwhere(twice)[0]
        raise ValueError(f"session {session} is shown item {ordered[session, place]} twice")
    if events[1:].sum() < 1:
        raise ValueError("training has no event: nothing is popular or novel")
    if min(ks, default=1) < 1:
        raise ValueError(f"k = {min(ks)}; a list has at least one place")


def _by_popularity(events: IntArray) -> IntArray:
    """Ids of the items that occur in training, the most frequent first, equal ones by lower id."""
    order: IntArray = np.argsort(-events[1:], kind="stable") + 1
    return order[events[order] > 0]


def _self_information(events: IntArray) -> FloatArray:
    """-log2(n_i / N) by id, a cold item as if seen once, 0 for no item; shape (items + 1,)."""
    bits: FloatArray = np.log2(events[1:].sum()) - np.log2(np.maximum(events, 1))
    bits[0] = 0
    return bits


def _ndcg(hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain: FloatArray = (hit * discount[: hit.shape[1]]).sum(axis=1)
    share: FloatArray = gain / np.cumsum(discount)[np.minimum(sizes, k) - 1]
    return share


def _first(hit: BoolArray) -> IntArray:
    """The first place of a hit, from 0; 0 without one, or without places."""
    return np.argmax(hit, axis=1) if hit.shape[1] else np.zeros(len(hit), dtype=np.int64)


def _share(part: npt.NDArray[np.generic], whole: IntArray) -> FloatArray:
    share: FloatArray = np.zeros(len(whole))
    np.divide(part, whole, out=share, where=whole > 0)
    return share
