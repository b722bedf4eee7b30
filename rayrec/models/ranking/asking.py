"""LLMSeqPrompt: what each form offers in the prompt, and the items that it teaches a language model to answer with.

Paper: https://arxiv.org/abs/2402.01339, sections 4.1 to 4.4; in detail as in its published code,
https://github.com/dh-r/LLM-Sequential-Recommendation. Shapes: S sessions, K places of a list, I items,
C clusters, D width.
"""

from dataclasses import dataclass

import numpy as np

from rayrec.errors import InputError
from rayrec.models.ranking.ranker import Ranker
from rayrec.models.reductions import Rows, clusters
from rayrec.sessions import Index, Sessions
from rayrec.stages import Form


@dataclass(frozen=True)
class Asked:
    """For each session the items that the prompt offers and those that are the answer; None: nothing of the kind."""

    offered: Sessions | None
    answers: Sessions | None


class Groups:
    """The catalogue in clusters of like names, each called by its item of most events in training."""

    def __init__(self, embeddings_ID: Rows, train: Sessions, count: int, *, seed: int) -> None:
        """The paper has 200 clusters, by k-means; items without a name (rows of zeros) are in none.

        Raises:
            InputError: there are fewer distinct names than clusters.
            ValueError: a session holds an item without a row.
        """
        class_I = clusters(embeddings_ID, count, seed=seed)
        if len(np.unique(class_I[embeddings_ID.any(axis=1)])) < count:
            raise InputError(f"clusters: {count} asked for of fewer distinct names; choose less")
        events_I = train.counts(len(embeddings_ID))[1:]
        order = np.lexsort((-events_I, class_I))  # stable: the lower id first among equals
        self.called_C: Index = order[np.searchsorted(class_I[order], np.arange(count))] + 1
        self._embeddings_ID = embeddings_ID
        self._centre_CD = np.stack([embeddings_ID[class_I == group].mean(axis=0) for group in range(count)])

    def nearest(self, items: Index, k: int) -> Index:
        """Names of the ``k`` clusters whose centres are nearest to each item, nearest first; (S, min(k, C))."""
        vectors_SD = self._embeddings_ID[items - 1]
        half_C = (self._centre_CD**2).sum(axis=1) / 2
        order_SC = np.argsort(half_C - vectors_SD @ self._centre_CD.T, axis=1, kind="stable")
        return self.called_C[order_SC[:, :k]]


def ask(
    form: Form,
    prompts: Sessions,
    targets_S: Index | None,
    k: int,
    *,
    similar: Ranker,
    groups: Groups | None = None,
    seed: int = 0,
) -> Asked:
    """What ``form`` offers and, where there are targets to learn, answers, in lists of ``k``.

    ``genitem`` answers with the target. ``genlist``: with the target and then what ``similar``, LLMSeqSim, ranks best.
    ``class`` offers what all ``groups`` are called, and answers with those nearest to the target. ``rank`` answers with
    the list of ``genlist``, which it offers in an order drawn from ``seed``; where there is nothing to learn it offers
    the list of ``similar`` alone, so that no prompt tells the target that is asked for.

    Raises:
        ValueError: an id is not in the catalogue.
    """
    match form:
        case Form.GENITEM:
            return Asked(None, None if targets_S is None else _sessions(targets_S[:, None]))
        case Form.GENLIST:
            if targets_S is None:
                return Asked(None, None)
            return Asked(None, _sessions(_led(targets_S, similar.rank(prompts, k))))
        case Form.CLASS:
            assert groups is not None
            every_SC = np.tile(groups.called_C, (len(prompts), 1))
            return Asked(_sessions(every_SC), None if targets_S is None else _sessions(groups.nearest(targets_S, k)))
        case Form.RANK:
            lists_SK = similar.rank(prompts, k)
            if targets_S is not None:
                lists_SK = _led(targets_S, lists_SK)
            offered = _sessions(np.random.default_rng(seed).permuted(lists_SK, axis=1))
            return Asked(offered, None if targets_S is None else _sessions(lists_SK))


def _led(targets_S: Index, lists_SK: Index) -> Index:
    """The lists with the target in front, the last item gone where it was not among them."""
    rest_SK = np.where(lists_SK == targets_S[:, None], 0, lists_SK)
    whole_SK1 = np.hstack([targets_S[:, None], rest_SK])
    order = np.argsort(whole_SK1 == 0, axis=1, kind="stable")
    return np.take_along_axis(whole_SK1, order, axis=1)[:, : lists_SK.shape[1]]


def _sessions(lists_SK: Index) -> Sessions:
    """Lists, of which 0 is no item."""
    is_item_SK = lists_SK > 0
    return Sessions(lists_SK[is_item_SK], np.append(0, np.cumsum(is_item_SK.sum(axis=1))))
