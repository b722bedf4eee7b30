"""Rows in bins of about equal count: how reliable scores are, and along which numbers a metric changes."""

import numpy as np
import numpy.typing as npt

from rayrec.metrics.pointwise import FloatArray, IntArray


def reliability(label: npt.ArrayLike, score: npt.ArrayLike, *, bins: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Rows, mean score and share of likes of bins of equal count, lowest scores first; shape (bins,) each.

    Counts differ by one row at most, so rows of one score may end in two bins; they keep their order. Fewer rows than
    ``bins`` have a bin each.

    Raises:
        ValueError: there are no rows.
    """
    labels, scores = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    parts = np.array_split(np.argsort(scores, kind="stable"), min(bins, len(scores)))
    rows = np.array([len(part) for part in parts])
    return rows, np.array([scores[p].mean() for p in parts]), np.array([labels[p].mean() for p in parts])


def quantile_bin(values: npt.ArrayLike, bins: int) -> IntArray:
    """The bin of each value, 0 for the lowest; shape (values,).

    Cut at the quantiles 1/bins, 2/bins, ..., which belong to the lower bin. Equal values share a bin, so counts are
    often full of ties and bins fewer and unequally full; none is empty.
    """
    cuts = np.unique(np.quantile(np.asarray(values, dtype=np.float64), np.arange(1, bins) / bins))
    place: IntArray = np.unique(np.searchsorted(cuts, values), return_inverse=True)[1]
    return place
