"""The floor: smoothed user mean + item mean of the training labels. No learning.

A trained system that does not clear it has learned nothing that averages do not know. The formula is the usual
baseline predictor of rating data (Koren, https://doi.org/10.1145/1401890.1401944, section 2.1), here on likes.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

PRIOR: Final = 5.0  # rows' worth of the global mean that every user and item starts with
_MARGIN: Final = 1e-6  # scores are probabilities, strictly between 0 and 1


class BiasFloor:
    """p(u, i) = clip(mean_u + mean_i - m, 1e-6, 1 - 1e-6), with m the mean of all labels.

    mean_u = (likes_u + 5 m) / (rows_u + 5), and likewise mean_i; unseen ids get m. Ids are small non-negative integers.
    """

    def __init__(self) -> None:
        self._users = _Means()
        self._items = _Means()

    def fit(self, users: npt.ArrayLike, items: npt.ArrayLike, labels: npt.ArrayLike) -> "BiasFloor":
        """Forgets all rows seen before, then ``update``."""
        self._users, self._items = _Means(), _Means()
        self.update(users, items, labels)
        return self

    def update(self, users: npt.ArrayLike, items: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Adds a block of training rows; shape (rows,) each. The order and size of blocks do not matter.

        Raises:
            ValueError: the lengths differ or an id is negative.
        """
        self._users.add(users, labels)
        self._items.add(items, labels)

    def predict(self, users: npt.ArrayLike, items: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probability of a like for each pair; shape (rows,).

        Raises:
            ValueError: no training row was seen, or an id is negative.
        """
        mean = self._users.overall()
        score = self._users.smoothed(users, mean) + self._items.smoothed(items, mean) - mean
        return np.clip(score, _MARGIN, 1 - _MARGIN)


class _Means:
    """Labels summed and counted per id; the arrays grow with the largest id seen."""

    def __init__(self) -> None:
        self.likes = np.zeros(0)
        self.rows = np.zeros(0)

    def add(self, ids: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        self.likes = _grown(self.likes, ids, np.asarray(labels, dtype=np.float64))
        self.rows = _grown(self.rows, ids, np.ones(np.size(labels)))

    def overall(self) -> float:
        if not self.rows.sum():
            raise ValueError("the bias floor has seen no training rows; call fit or update first")
        return float(self.likes.sum() / self.rows.sum())

    def smoothed(self, ids: npt.ArrayLike, mean: float) -> npt.NDArray[np.float64]:
        wanted = np.asarray(ids, dtype=np.int64)
        if (wanted < 0).any():
            raise ValueError(f"id {wanted.min()} is negative")
        table = np.append((self.likes + PRIOR * mean) / (self.rows + PRIOR), mean)  # the last entry: never seen
        return np.asarray(table[np.minimum(wanted, len(table) - 1)])


def _grown(
    total: npt.NDArray[np.float64], ids: npt.ArrayLike, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    added = np.bincount(np.asarray(ids, dtype=np.int64), weights, minlength=len(total)).astype(np.float64)
    added[: len(total)] += total
    return added
