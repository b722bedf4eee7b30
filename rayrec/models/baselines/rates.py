"""Like rates: labels summed and counted per id, which is all that the floors ask of a single user or item."""

from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PRIOR: Final = 5.0  # rows' worth of the mean that every user and item starts with
MARGIN: Final = 1e-6  # scores are probabilities, strictly between 0 and 1


class Rates:
    """Likes and rows of every id; the arrays grow with the largest id seen. Ids are small non-negative integers."""

    def __init__(self) -> None:
        self.likes = np.zeros(0)
        self.rows = np.zeros(0)

    def add(self, ids: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Adds rows; shape (rows,) each. Sums of 0 and 1 are exact, so their order does not matter.

        Raises:
            ValueError: the lengths differ or an id is negative.
        """
        self.likes = _grown(self.likes, ids, np.asarray(labels, dtype=np.float64))
        self.rows = _grown(self.rows, ids, np.ones(np.size(labels)))

    def overall(self) -> float:
        """The mean of all labels.

        Raises:
            ValueError: no row was seen.
        """
        if not self.rows.sum():
            raise ValueError("no training rows were seen; call fit or update first")
        return float(self.likes.sum() / self.rows.sum())

    def smoothed(self, ids: npt.ArrayLike, mean: float, prior: float = PRIOR) -> FloatArray:
        """(likes + prior x mean) / (rows + prior) of each id, ``mean`` for one never seen; the shape of ``ids``.

        Raises:
            ValueError: an id is negative.
        """
        return _looked_up((self.likes + prior * mean) / (self.rows + prior), ids, mean)

    def counts(self, ids: npt.ArrayLike) -> FloatArray:
        """Rows of each id; the shape of ``ids``. Raises ``ValueError`` as ``smoothed``."""
        return _looked_up(self.rows, ids, 0.0)


def _looked_up(table: FloatArray, ids: npt.ArrayLike, unseen: float) -> FloatArray:
    wanted = np.asarray(ids, dtype=np.int64)
    if (wanted < 0).any():
        raise ValueError(f"id {wanted.min()} is negative")
    found: FloatArray = np.append(table, unseen)[np.minimum(wanted, len(table))]
    return found


def _grown(total: FloatArray, ids: npt.ArrayLike, weights: FloatArray) -> FloatArray:
    added = np.bincount(np.asarray(ids, dtype=np.int64), weights, minlength=len(total)).astype(np.float64)
    added[: len(total)] += total
    return added
