"""MC: a first-order Markov chain from the last liked item to the rated one, the paper's MC (section 5.1.2).

Few pairs of items follow each other often enough to be counted, so a transition backs off to the item's own like rate,
and that to the mean of all labels, as in a hierarchical Dirichlet bigram model (MacKay and Peto,
http://www.inference.org.uk/mackay/abstracts/lang4.html).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from rayrec.models.baselines.rates import MARGIN, PRIOR, Rates

IntArray = npt.NDArray[np.int64]

_ITEMS: Final = 2**31  # item ids are below it, so that two of them are one number
_FOLD_ROWS: Final = 1_000_000  # rows gathered before they are added up, at least


class MarkovChain:
    """p(i | a) = (likes_ai + 5 p_i) / (rows_ai + 5), with a the last item liked before the row.

    rows_ai are the training rows of i that came when a was the last liked item, likes_ai those of them that are likes.
    p_i = (likes_i + 5 m) / (rows_i + 5) is the item's own rate over all its rows, m the mean of all labels. A row
    without a liked item before it (a = 0), or with a pair never seen, gets p_i; an item never seen, m.

    Memory: 24 bytes for each transition seen, and for as many rows, or a million, that wait to be added up.
    """

    def __init__(self) -> None:
        self._items = Rates()
        self._pairs, self._counts = _nothing()  # ordered; rows and likes of each
        self._waiting: list[tuple[IntArray, IntArray]] = []

    def fit(self, last: npt.ArrayLike, items: npt.ArrayLike, labels: npt.ArrayLike) -> "MarkovChain":
        """Forgets all rows seen before, then ``update``."""
        self._items, self._waiting = Rates(), []
        self._pairs, self._counts = _nothing()
        self.update(last, items, labels)
        return self

    def update(self, last: npt.ArrayLike, items: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Adds a block of training rows; shape (rows,) each. The order and size of blocks do not matter.

        Args:
            last: the item that the user liked last before the row, 0 for none.
            items: the rated items.
            labels: 1 for a like, 0 for a dislike.

        Raises:
            ValueError: the lengths differ or an id is negative.
        """
        pairs, liked = _pair(last, items), np.asarray(labels, dtype=np.int64)
        self._items.add(items, liked)
        known = pairs >= _ITEMS  # the others have no item before them
        self._waiting.append((pairs[known], np.stack([np.ones_like(liked), liked], axis=1)[known]))
        # Only when they have doubled, so that many small blocks take linear time.
        if sum(len(waiting) for waiting, _ in self._waiting) > max(len(self._pairs), _FOLD_ROWS):
            self._add_up()

    def predict(self, last: npt.ArrayLike, items: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probability of a like for each row, as ``update`` reads them; shape (rows,).

        Raises:
            ValueError: no training row was seen, or an id is negative.
        """
        wanted = _pair(last, items)
        backoff = self._items.smoothed(items, self._items.overall())
        self._add_up()
        rows, likes = np.zeros((2, len(wanted)))
        if len(self._pairs):
            place = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
            rows, likes = np.where(self._pairs[place] == wanted, self._counts[place].T, 0)
        return np.clip((likes + PRIOR * backoff) / (rows + PRIOR), MARGIN, 1 - MARGIN)

    def _add_up(self) -> None:
        pairs = np.concatenate([self._pairs, *(pairs for pairs, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
        order = np.argsort(pairs, kind="stable")
        pairs, counts = pairs[order], counts[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        self._pairs, self._waiting = pairs[starts], []
        if len(starts):
            self._counts = np.add.reduceat(counts, starts)


def _nothing() -> tuple[IntArray, IntArray]:
    return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)


def _pair(last: npt.ArrayLike, items: npt.ArrayLike) -> IntArray:
    before, after = np.asarray(last, dtype=np.int64), np.asarray(items, dtype=np.int64)
    if before.shape != after.shape:
        raise ValueError(f"{before.size} last items and {after.size} items: lengths must be equal")
    for ids in (before, after):
        if (ids < 0).any():
            raise ValueError(f"id {ids.min()} is negative")
    return before * _ITEMS + after
