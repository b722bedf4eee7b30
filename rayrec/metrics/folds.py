"""Metrics over folds: their mean, its resamples, and the spread over seeds.

Folds have test rows of their own, and a user may have rows in several. With M_f(A, s; w) a metric of system A under
training seed s on the rows of fold f, each row weighted as its user is in w, k folds and S_f seeds in fold f:

- the value of A is (1/k) sum_f (1/S_f) sum_s M_f(A, s; 1), and its difference from B that of the values;
- resample b draws as many users as the folds have altogether, with replacement, for all folds at once: w_b(u) is how
  often it drew u, whatever the fold, so that one user's rows in all folds go together. The resampled difference is
  d_b = (1/k) sum_f [(1/S_f) sum_s M_f(A, s; w_b) - (1/S'_f) sum_s M_f(B, s; w_b)], and interval and p follow from
  d_1, d_2, ... as in ``paired_difference``;
- the spread over seeds is sqrt(sum_f sum_s (M_f(A, s; 1) - mean_f)^2 / sum_f (S_f - 1)), mean_f that of fold f over its
  seeds: the pooled standard deviation, which leaves out how much folds differ.

Users are the clusters: Cameron, Gelbach & Miller, Bootstrap-Based Improvements for Inference with Clustered Errors
(2008), https://doi.org/10.1162/rest.90.3.414. Drawn fold by fold, a user of several folds would count as so many
strangers, and where its rows resemble each other the intervals would be too narrow.
"""

import math
from collections.abc import Sequence

import numpy as np

from rayrec.metrics.pointwise import METRICS
from rayrec.metrics.significance import Resampled


def mean_of_folds(folds: Sequence[Resampled]) -> Resampled:
    """The mean over folds, for ``pooled_difference``; ``each`` is empty, for folds may have unequally many seeds.

    Each comes from ``resampled_mean`` with one population, the users of all folds, and equal resamples and seed. A
    metric that a fold or a resample of it leaves undefined is NaN; so are all resamples where a fold has fewer than two
    users.
    """
    least = min(len(fold.draws[METRICS[0]]) for fold in folds)
    return Resampled(
        values={name: math.fsum(fold.values[name] for fold in folds) / len(folds) for name in METRICS},
        each=(),
        draws={name: np.mean([fold.draws[name][:least] for fold in folds], axis=0) for name in METRICS},
    )


def pooled_deviation(folds: Sequence[Sequence[float]]) -> float:
    """The spread over seeds within folds of a metric's values, fold -> seed -> value; NaN with one seed a fold."""
    freedom = sum(len(values) - 1 for values in folds)
    squares = math.fsum(float(np.var(values)) * len(values) for values in folds)
    return math.sqrt(squares / freedom) if freedom else math.nan
