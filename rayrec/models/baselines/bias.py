"""The floor: smoothed user mean + item mean of the training labels. No learning.

A trained system that does not clear it has learned nothing that averages do not know. The formula is the usual
baseline predictor of rating data (Koren, https://doi.org/10.1145/1401890.1401944, section 2.1), here on likes.
"""

import numpy as np
import numpy.typing as npt

from rayrec.models.baselines.rates import MARGIN, Rates


class BiasFloor:
    """p(u, i) = clip(mean_u + mean_i - m, 1e-6, 1 - 1e-6), with m the mean of all labels.

    mean_u = (likes_u + 5 m) / (rows_u + 5), and likewise mean_i; unseen ids get m. Ids are small non-negative integers.
    """

    def __init__(self) -> None:
        self._users = Rates()
        self._items = Rates()

    def fit(self, users: npt.ArrayLike, items: npt.ArrayLike, labels: npt.ArrayLike) -> "BiasFloor":
        """Forgets all rows seen before, then ``update``."""
        self._users, self._items = Rates(), Rates()
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
        return np.clip(score, MARGIN, 1 - MARGIN)
