"""How sure a number is: bootstrap over users, for all metrics at once.

Rows of one user are not independent, so whole users are drawn, with replacement (the cluster bootstrap). A resample
is a weight for each user: how often it was drawn. AUC needs the rows, pre-sorted by score; UAUC weights the
users' own AUCs; everything else is a matrix product with per-user sums.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from rayrec.metrics.bootstrap import Difference, Estimate, difference, drawn_weights, interval
from rayrec.metrics.pointwise import (
    METRICS,
    FloatArray,
    IntArray,
    auc,
    from_sums,
    mean_auc,
    user_auc,
    user_sums,
)

SLICES: Final = ("all", "warm", "cold", "strict_cold")


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """Rows pre-sorted by score. ``below`` and ``up_to``: of each liked row, the disliked rows scored < and <= it."""

    positive: IntArray  # user index of each liked row
    negative: IntArray  # user index of each disliked row, lowest score first
    below: IntArray
    up_to: IntArray

    @classmethod
    def of(cls, index: IntArray, label: npt.ArrayLike, score: npt.ArrayLike) -> "_Ranking":
        liked, scores = np.asarray(label) == 1, np.asarray(score, dtype=np.float64)
        order = np.argsort(scores, kind="stable")
        liked, scores, index = liked[order], scores[order], index[order]
        lower, upper = scores[~liked], scores[liked]
        return cls(
            positive=index[liked],
            negative=index[~liked],
            below=np.searchsorted(lower, upper, "left"),
            up_to=np.searchsorted(lower, upper, "right"),
        )

    def auc(self, weights: FloatArray) -> FloatArray:
        """AUC under each row of user weights; shape (resamples, users) -> (resamples,). NaN without both classes."""
        up, down = weights[:, self.positive], weights[:, self.negative]
        total = np.zeros((len(weights), down.shape[1] + 1))  # total[:, k]: weight of the k lowest disliked rows
        np.cumsum(down, axis=1, out=total[:, 1:])
        wins = np.einsum("br,br->b", up, total[:, self.below] + total[:, self.up_to]) / 2
        pairs = up.sum(axis=1) * total[:, -1]
        return _quotient(wins, pairs)


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """One score a row, made ready for any weights of users."""

    ranking: _Ranking
    sums: FloatArray  # of ``user_sums``
    per_user: FloatArray  # of ``user_auc``
    auc: float

    @classmethod
    def of(cls, index: IntArray, label: IntArray, score: FloatArray, *, cutoff: float) -> "_Scored":
        return cls(
            ranking=_Ranking.of(index, label, score),
            sums=user_sums(index, label, score, cutoff=cutoff),
            per_user=user_auc(index, label, score),
            auc=auc(label, score),
        )

    @property
    def values(self) -> dict[str, float]:
        """Every metric of the rows as they are."""
        values = {name: float(value) for name, value in from_sums(self.sums.sum(axis=0)).items()}
        return values | {"auc": self.auc, "uauc": mean_auc(self.per_user)[0]}

    def under(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Every metric under each row of user weights; shape (resamples, users) -> (resamples,) each."""
        uauc = _weighted_uauc(weights, self.per_user)
        return {"auc": self.ranking.auc(weights), "uauc": uauc, **from_sums(weights @ self.sums)}


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Metrics of some rows, averaged over several scores of each row, and the same under every resample of users."""

    values: Mapping[str, float]
    each: tuple[Mapping[str, float], ...]  # the values of each score
    draws: Mapping[str, FloatArray]  # metric -> shape (resamples,); empty for fewer than two users

    def estimate(self, name: str) -> Estimate:
        """A metric with its 95% interval over users."""
        return Estimate(self.values[name], *interval(self.draws[name]))


def evaluate(
    user_id: npt.ArrayLike,
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    cutoff: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every metric of ``METRICS`` with its 95% interval over users.

    Args:
        user_id: the user of each row, any integers; shape (rows,).
        label: 1 for a like, 0 for a dislike; shape (rows,).
        score: probability of a like; shape (rows,).
        cutoff: a score of at least this counts as a like.
        resamples: bootstrap resamples of users.
        seed: of the resampling; the same seed gives the same intervals.

    Raises:
        ValueError: lengths differ, a label is not 0 or 1, or a score is not in [0, 1].
    """
    found = resampled_mean(user_id, label, [score], cutoff=cutoff, resamples=resamples, seed=seed)
    return {name: found.estimate(name) for name in METRICS}


def evaluate_slices(
    frame: pd.DataFrame, *, cutoff: float = 0.5, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """``evaluate`` on all rows and on the warm, cold and strict cold ones, as plain data for JSON (null, never NaN).

    Args:
        frame: predictions with the columns user_id, label, score, is_warm, is_strict_cold. (Spelled out here: metrics
            do not import the data layer. A test holds them to its schema.)
        cutoff: as in ``evaluate``; so are ``resamples`` and ``seed``.

    Returns:
        slice -> {"counts": {"rows", "users", "positives", "users_with_both_classes"},
        "metrics": {name: {"value", "low", "high"}}}. An empty slice has counts 0 and null values.
    """
    warm = frame["is_warm"].to_numpy(dtype=bool)
    masks = (np.ones(len(frame), dtype=bool), warm, ~warm, frame["is_strict_cold"].to_numpy(dtype=bool))
    result: dict[str, dict[str, Any]] = {}
    for name, mask in zip(SLICES, masks, strict=True):
        user, label, score = (frame[column].to_numpy()[mask] for column in ("user_id", "label", "score"))
        estimates = evaluate(user, label, score, cutoff=cutoff, resamples=resamples, seed=seed)
        result[name] = {
            "counts": {
                "rows": int(mask.sum()),
                "users": len(np.unique(user)),
                "positives": int(label.sum(dtype=np.int64)),
                "users_with_both_classes": mean_auc(user_auc(user, label, score))[1],
            },
            "metrics": {metric: _plain(estimate) for metric, estimate in estimates.items()},
        }
    return result


def paired_difference(
    user_id: npt.ArrayLike,
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    other: npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """``auc``, ``uauc`` and ``log_loss`` of ``score`` minus those of ``other``, over the same rows and resamples.

    p = 2 min((1 + #{d <= 0}) / (1 + n), (1 + #{d >= 0}) / (1 + n)), at most 1, over the n resampled differences d.

    Raises:
        ValueError: as ``evaluate``.
    """
    first, second = (
        resampled_mean(user_id, label, [scores], resamples=resamples, seed=seed) for scores in (score, other)
    )
    found = pooled_difference(first, second)
    return {name: found[name] for name in ("auc", "uauc", "log_loss")}


def resampled_mean(
    user_id: npt.ArrayLike,
    label: npt.ArrayLike,
    scores: Sequence[npt.ArrayLike],
    *,
    cutoff: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    population: npt.ArrayLike | None = None,
) -> Resampled:
    """Every metric of ``METRICS`` as its mean over ``scores``, under the same resamples of users for each.

    Args:
        user_id: as in ``evaluate``; so are ``label``, ``cutoff``, ``resamples`` and ``seed``.
        scores: one or more times a probability for each row; shape (rows,) each. Usually one of each training seed.
        population: users to draw from, those of the rows among them; None: those of the rows. Calls with the same
            population, resamples and seed draw the same users, whatever rows each call is of.

    Raises:
        ValueError: as ``evaluate``; or a row's user is not in the population.
    """
    users, labels, _ = _checked(user_id, label, scores[0])
    names, index = np.unique(users, return_inverse=True)
    drawn = names if population is None else np.unique(population)
    if not np.isin(names, drawn).all():
        raise ValueError("a row's user is not in the population that users are drawn from")
    at = np.searchsorted(drawn, names)
    scored = [_Scored.of(index, labels, _checked(users, labels, score)[2], cutoff=cutoff) for score in scores]
    draws: dict[str, list[FloatArray]] = {name: [np.empty(0)] for name in METRICS}
    if len(names) > 1:  # else every resample would be the same: an interval of width 0 that means nothing
        for weights in drawn_weights(len(drawn), len(index), resamples, seed):
            each = [one.under(weights.take(at, axis=1)) for one in scored]
            for name in METRICS:
                draws[name].append(np.mean([found[name] for found in each], axis=0))
    each_values = tuple(one.values for one in scored)
    return Resampled(
        values={name: math.fsum(values[name] for values in each_values) / len(scored) for name in METRICS},
        each=each_values,
        draws={name: np.concatenate(blocks) for name, blocks in draws.items()},
    )


def pooled_difference(system: Resampled, other: Resampled) -> dict[str, Difference]:
    """Every metric of ``system`` minus that of ``other``: the mean over seeds of the paired differences.

    Both come from ``resampled_mean`` over the same rows, labels, resamples and seed of resampling. A mean of
    differences is the difference of the means, so the two may have unequally many seeds: what has no training has one.
    Interval and p are those of ``paired_difference``: over users, and for these training seeds alone.

    Raises:
        ValueError: the two have not equally many resamples.
    """
    result = {}
    for name in METRICS:
        first, second = _equally_many(system, other, name)
        result[name] = difference(system.values[name] - other.values[name], first - second)
    return result


def relative_change(system: Resampled, other: Resampled) -> dict[str, Estimate]:
    """Every metric of ``system`` over that of ``other``, minus 1; the interval is of the same resamples of users.

    Both as in ``pooled_difference``. NaN where the other's metric is 0.

    Raises:
        ValueError: as ``pooled_difference``.
    """
    result = {}
    for name in METRICS:
        first, second = _equally_many(system, other, name)
        value = _quotient(np.array([system.values[name]]), np.array([other.values[name]]))
        result[name] = Estimate(float(value[0]) - 1, *interval(_quotient(first, second) - 1))
    return result


def _equally_many(system: Resampled, other: Resampled, name: str) -> tuple[FloatArray, FloatArray]:
    first, second = system.draws[name], other.draws[name]
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} resamples: they must be of the same rows and equally many")
    return first, second


def _checked(
    user_id: npt.ArrayLike, label: npt.ArrayLike, score: npt.ArrayLike
) -> tuple[IntArray, IntArray, FloatArray]:
    users, labels, scores = np.asarray(user_id), np.asarray(label), np.asarray(score, dtype=np.float64)
    if not len(users) == len(labels) == len(scores):
        raise ValueError(f"{len(users)} users, {len(labels)} labels and {len(scores)} scores: lengths must be equal")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    outside = ~((scores >= 0) & (scores <= 1))  # also true for NaN
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"row {row} has score {scores[row]}; scores must be probabilities in [0, 1]")
    return users.astype(np.int64), labels.astype(np.int64), scores


def _weighted_uauc(weights: FloatArray, per_user: FloatArray) -> FloatArray:
    counts = ~np.isnan(per_user)
    if counts.sum() < 2:
        return np.full(len(weights), np.nan)
    kept = weights[:, counts]
    return _quotient(kept @ per_user[counts], kept.sum(axis=1))


def _quotient(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    quotient: FloatArray = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in estimate._asdict().items()}
