"""MostPopular: the same list for everybody, but for what the prompt holds."""

import numpy as np
import numpy.typing as npt

from rayrec.sessions import Sessions

IntArray = npt.NDArray[np.int64]


class MostPopular:
    """Items by their events in training, the lower id first among equals; items that never occur are not ranked.

    The code of https://arxiv.org/abs/2402.01339 also shows what the prompt holds already.
    """

    def __init__(self) -> None:
        self._items = 0
        self._order = np.empty(0, dtype=np.int64)

    def fit(self, train: Sessions, items: int) -> "MostPopular":
        """Counts the events of each item.

        Raises:
            ValueError: an id is above ``items``.
        """
        counts = train.counts(items)
        order = np.argsort(-counts, kind="stable")
        self._items, self._order = items, order[counts[order] > 0]
        return self

    def rank(self, prompts: Sessions, k: int) -> IntArray:
        """As ``Ranker.rank``. Time and memory grow with prompts x k, not with the catalogue.

        The masked items of a prompt lie at the places m_0 < m_1 < ... of the common list. m_j stands before the p-th
        item that is left exactly if m_j - j <= p, so that counting those tells how far each p moves up.
        """
        prompts.require(self._items)
        place = np.full(self._items + 1, len(self._order))
        place[self._order] = np.arange(len(self._order))
        wide = len(self._order) + 1
        owner, masked = np.divmod(np.unique(prompts.owners * wide + place[prompts.items]), wide)
        nth = np.arange(len(owner)) - np.searchsorted(owner, owner)
        moved = masked - nth
        near = (moved < k) & (masked < len(self._order))
        passed = np.zeros((len(prompts), k), dtype=np.int64)
        np.add.at(passed, (owner[near], moved[near]), 1)
        picks = np.arange(k) + np.cumsum(passed, axis=1)
        padded = np.append(self._order, 0)
        return padded[np.minimum(picks, len(self._order))]
