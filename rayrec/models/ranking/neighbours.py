"""Session kNN: items of the training sessions that are most like the prompt (SKNN, V-SKNN).

Ludewig & Jannach, https://arxiv.org/abs/1803.09587, section 3.4; the options are those that
https://arxiv.org/abs/2402.01339 searched over, whose code has an implementation of its own. Sparse products, in blocks
of prompts that bound what is held at a time. Shapes: B prompts, S training sessions, V + 1 item ids.
"""

import itertools
from collections.abc import Iterator
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from rayrec.models.ranking.decay import Decay, FloatArray
from rayrec.sessions import Sessions

IntArray = npt.NDArray[np.int64]

_ENTRIES: Final = 2**20  # similarities and scores held at a time, each: about 100 MB with what sorting them takes


class Similarity(Enum):
    """Of a prompt's weights w and the set n of a training session's items."""

    COSINE = "cosine"  # sum of w over n / sqrt(|n|): the cosine but for |w|, which is the prompt's own
    DOT = "dot"  # sum of w over n


class SessionKNN:
    """score(i) = idf(i) * sum of sim(w, n) over the neighbours n that hold item i.

    w weights the prompt's items by their distance from its end, an item that is there twice by its last place;
    ``Decay.NONE`` makes it SKNN, any other decay V-SKNN. Candidates are the training sessions that share an item with
    the prompt, the latest ``sample`` of them; neighbours are the ``neighbours`` most similar candidates, the later
    one among equals. idf(i) = 1 + ln(S / sessions with i), or 1 without ``idf``. Items that no neighbour holds have no
    claim: lists may end in 0.

    Sessions count as given in the order of time. Where that is unknown, shuffle them before ``fit``: the latest
    sessions are then a random sample. A sample as large as there are candidates leaves nothing to the order but ties.

    Differences from session-rec's ``VMContextKNN``: its similarity is DOT divided by the length of the prompt, which
    ranks the same; it also weights neighbours by the last shared item (``weighting_score``), and adds idf's logarithm
    times a factor, here 1. From the paper's ``SessionBasedCF``: its sample is random, equal similarities and scores
    come in any order, and an item that is in the prompt twice counts at its first place.
    """

    def __init__(
        self,
        *,
        neighbours: int = 100,
        sample: int | None = 1000,
        decay: Decay = Decay.NONE,
        similarity: Similarity = Similarity.COSINE,
        idf: bool = False,
    ) -> None:
        """``sample`` None: all candidates."""
        self._neighbours, self._sample = neighbours, sample
        self._decay, self._similarity, self._idf = decay, similarity, idf
        self.fit(Sessions.of([]), items=0)

    def fit(self, train: Sessions, items: int) -> "SessionKNN":
        """Keeps the training sessions as sparse matrices.

        Raises:
            ValueError: an id is above ``items``.
        """
        train.require(items)
        holds = _matrix(train, items, Decay.NONE)[::-1].tocsr()  # the latest first: lower columns win ties
        held = np.bincount(holds.indices, minlength=items + 1)
        self._items = items
        self._holds_SV, self._held_by_VS, self._held = holds, holds.T.tocsr(), held
        self._norm_S = np.sqrt(np.maximum(np.diff(holds.indptr), 1))
        self._idf_V = 1 + np.log(max(1, len(train)) / np.maximum(held, 1)) if self._idf else np.ones(items + 1)
        return self

    def rank(self, prompts: Sessions, k: int) -> IntArray:
        """As ``Ranker.rank``.

        Raises:
            ValueError: an id is not in the catalogue.
        """
        prompts.require(self._items)
        lists = np.zeros((len(prompts), k), dtype=np.int64)
        for start, stop in self._blocks(prompts):
            block = prompts.between(start, stop)
            row, item, _, place = _largest(self._scores(block), k)
            lists[start + row, place] = item
        return lists

    def _blocks(self, prompts: Sessions) -> Iterator[tuple[int, int]]:
        """Consecutive prompts whose candidates and neighbours' items do not come to much more than ``_ENTRIES``."""
        candidates = np.bincount(prompts.owners, self._held[prompts.items], minlength=len(prompts))
        shown = self._neighbours * self._holds_SV.nnz / max(1, self._holds_SV.shape[0])
        block = np.cumsum(np.maximum(candidates, shown)) // _ENTRIES
        cuts = np.flatnonzero(np.diff(block)) + 1
        yield from zip([0, *cuts], [*cuts, len(prompts)], strict=True)

    def _scores(self, prompts: Sessions) -> sparse.csr_matrix:
        """Scores of the items that neighbours hold and the prompt does not; (B, V + 1)."""
        weights = _matrix(prompts, self._items, self._decay)
        near = weights @ self._held_by_VS
        near.sort_indices()
        if self._sample is not None:
            near = _only(near, _place(near) < self._sample)
        if self._similarity is Similarity.COSINE:
            near.data /= self._norm_S[near.indices]
        row, session, likeness, _ = _largest(near, self._neighbours)
        ends = np.searchsorted(row, np.arange(len(prompts) + 1))
        scores = sparse.csr_matrix((likeness, session, ends), shape=near.shape) @ self._holds_SV
        scores.sort_indices()
        scores = scores - scores.multiply(weights.astype(np.bool_))  # exact zeros, which leave no entry
        scores.data *= self._idf_V[scores.indices]
        return scores


def _matrix(sessions: Sessions, items: int, decay: Decay) -> sparse.csr_matrix:
    """The weight of each item in each session, by its last place there; (sessions, items + 1), sorted."""
    keys = sessions.owners * (items + 1) + sessions.items
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    ends = np.searchsorted(sessions.owners[last], np.arange(len(sessions) + 1))
    parts = (decay.weights(sessions)[last], sessions.items[last], ends)
    return sparse.csr_matrix(parts, shape=(len(sessions), items + 1))


def _largest(matrix: sparse.csr_matrix, k: int) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """The k largest entries of each row of a sorted matrix, largest first, equal ones by lower column.

    Returns:
        row, column, value and place in its row's list of each entry, row by row.
    """
    cut = np.zeros(matrix.shape[0])
    for at, (start, stop) in enumerate(itertools.pairwise(matrix.indptr)):
        if stop - start > k:
            cut[at] = np.partition(matrix.data[start:stop], stop - start - k)[stop - start - k]
    left = _only(matrix, matrix.data >= np.repeat(cut, np.diff(matrix.indptr)))  # so that few are to be sorted
    row, place = np.repeat(np.arange(left.shape[0]), np.diff(left.indptr)), _place(left)
    order = np.lexsort((-left.data, row))  # stable, and columns ascend
    kept = place < k
    return row[kept], left.indices[order[kept]], left.data[order[kept]], place[kept]


def _only(matrix: sparse.csr_matrix, kept: npt.NDArray[np.bool_]) -> sparse.csr_matrix:
    """The matrix with some of its entries."""
    ends = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)


def _place(matrix: sparse.csr_matrix) -> IntArray:
    """The place of each entry in its row, from 0."""
    place: IntArray = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    return place
