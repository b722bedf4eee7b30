"""How sure a mean over sessions is: bootstrap over sessions, for all metrics and cut-offs at once.

As ``significance`` does it for users: whole sessions are drawn with replacement, a resample is a weight for each, and
here every metric is a matrix product of weights and per-session values. Training seeds come in as the mean of their
per-session values, which is the same as the mean of their metrics.
"""

from collections.abc import Mapping

import numpy as np

from rayrec.metrics.bootstrap import Difference, Estimate, difference, drawn_weights, interval
from rayrec.metrics.pointwise import FloatArray


def session_estimates(values: Mapping[str, FloatArray], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Each metric's mean over sessions and its 95% percentile interval.

    Args:
        values: of ``session_metrics``, or a mask of sessions of it; shape (sessions,) each.
        resamples: bootstrap resamples of sessions.
        seed: of the resampling; the same seed gives the same intervals.

    Raises:
        ValueError: there is no session, or the metrics have not equally many.
    """
    means, draws = _means(values), _draws(values, resamples, seed)
    return {name: Estimate(means[name], *interval(draws[name])) for name in values}


def session_differences(
    values: Mapping[str, FloatArray], other: Mapping[str, FloatArray], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Each metric's mean of ``values`` minus that of ``other``, session by session; interval and p as for users.

    Raises:
        ValueError: as ``session_estimates``, or the two are not of the same metrics and equally many sessions.
    """
    if values.keys() != other.keys():
        raise ValueError(f"metrics {sorted(values)} and {sorted(other)} must be the same")
    if any(len(values[name]) != len(other[name]) for name in values):
        raise ValueError("a paired difference needs both systems on the same sessions")
    paired = {name: values[name] - other[name] for name in values}
    means, draws = _means(paired), _draws(paired, resamples, seed)
    return {name: difference(means[name], draws[name]) for name in values}


def _means(values: Mapping[str, FloatArray]) -> dict[str, float]:
    if len({len(column) for column in values.values()}) != 1 or not all(map(len, values.values())):
        raise ValueError("every metric needs a value for each session, and there must be a session")
    return {name: float(column.mean()) for name, column in values.items()}


def _draws(values: Mapping[str, FloatArray], resamples: int, seed: int) -> dict[str, FloatArray]:
    """The means under each resample; shape (resamples,) each, none for a single session."""
    table = np.stack(list(values.values()), axis=1)
    sessions = len(table)
    if sessions < 2:  # every resample would be the same: an interval of width 0 that means nothing
        return {name: np.empty(0) for name in values}
    means = np.vstack([weights @ table / sessions for weights in drawn_weights(sessions, sessions, resamples, seed)])
    return dict(zip(values, means.T, strict=True))
