"""What a bootstrap draws, and what it says of a value; of users in ``significance``, of sessions next to it.

Intervals are 95% percentile intervals: Efron & Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3
(interval) and 16.4 (test).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from rayrec.metrics.pointwise import FloatArray

_PERCENTILES: Final = (2.5, 97.5)
_BLOCK: Final = 2**21  # numbers held per block of resamples: 16 MB


class Estimate(NamedTuple):
    """A value and its 95% interval; NaN where undefined (one class only) or, for the interval, with one user only."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference, its 95% interval and the two-sided bootstrap p of "no difference"."""

    value: float
    low: float
    high: float
    p: float


def drawn_weights(users: int, rows: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Blocks of shape (some resamples, users): how often each user was drawn; the same for blocks of any size.

    ``rows`` that each resample goes through decide the blocks' size.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)


def interval(draws: FloatArray) -> tuple[float, float]:
    """The 95% percentile interval of resampled values, of those that are defined; NaN for none."""
    defined = draws[~np.isnan(draws)]  # a resample may lack a class
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)


def difference(value: float, draws: FloatArray) -> Difference:
    """A difference with its interval and p, by the resampled differences; NaN for none."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Difference(value, *interval(draws), float("nan"))
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return Difference(value, *interval(draws), min(1.0, 2 * (1 + tail) / (1 + len(defined))))
