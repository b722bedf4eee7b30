"""Intervals of means over sessions, against those of users and against SciPy's bootstrap."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from rayrec.metrics import evaluate, session_differences, session_estimates


def losses(seed: int, sessions: int = 300) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).exponential(size=sessions)


def test_a_mean_over_sessions_is_one_over_users_of_one_row_each() -> None:
    one, other = losses(0), losses(1)
    estimates = session_estimates({"one@5": one, "other@5": other}, resamples=200, seed=3)
    for name, column in (("one@5", one), ("other@5", other)):
        # A like of probability exp(-loss) has that log loss.
        users = evaluate(np.arange(len(column)), np.ones(len(column)), np.exp(-column), resamples=200, seed=3)
        assert estimates[name] == pytest.approx(users["log_loss"])


def test_intervals_are_those_of_scipy() -> None:
    column = losses(2)
    found = session_estimates({"x": column}, resamples=4000)["x"]
    theirs = stats.bootstrap((column,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.value == pytest.approx(column.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_a_paired_difference_is_the_estimate_of_the_difference() -> None:
    better, worse = losses(4) + 0.2, losses(4) + 0.05 * losses(5)
    found = session_differences({"x": better}, {"x": worse}, resamples=500)["x"]
    expected = session_estimates({"x": better - worse}, resamples=500)["x"]
    assert found[:3] == pytest.approx(expected)
    assert found.p == 2 / 501  # no resample has the other sign
    back = session_differences({"x": worse}, {"x": better}, resamples=500)["x"]
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_system_does_not_differ_from_itself() -> None:
    same = session_differences({"x": losses(6)}, {"x": losses(6)}, resamples=50)["x"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_one_session_has_no_interval() -> None:
    found = session_estimates({"x": np.array([0.5])})["x"]
    assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(session_differences({"x": np.array([0.5])}, {"x": np.array([0.0])})["x"].p)


def test_bad_input_is_refused() -> None:
    two, three = np.zeros(2), np.zeros(3)
    with pytest.raises(ValueError, match="a value for each session"):
        session_estimates({"x": two, "y": three})
    with pytest.raises(ValueError, match="there must be a session"):
        session_estimates({"x": np.empty(0)})
    with pytest.raises(ValueError, match="on the same sessions"):
        session_differences({"x": two}, {"x": three})
    with pytest.raises(ValueError, match="must be the same"):
        session_differences({"x": two}, {"y": two})
