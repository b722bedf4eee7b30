"""What the folds of an experiment come to together: the tables' means, spreads and differences, and each fold's own.

The formulas are in ``rayrec.metrics.folds``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayrec.experiment.results import (
    Found,
    Row,
    Told,
    compare,
    masked,
    mean_and_interval,
    plain,
    resample,
    rows_of,
    summarise,
)
from rayrec.experiment.settings import Experiment
from rayrec.metrics import METRICS, SLICES, Resampled, mean_of_folds, pooled_deviation

_OF_A_FOLD = ("sample", "systems", "best")  # of what ``compare`` tells; the rest is the same in all folds


def summarise_folds(
    experiment: Experiment, told: Mapping[int | None, Mapping[str, Told]], samples: Mapping[int | None, str]
) -> dict[str, Any]:
    """As ``summarise``, over all folds, with each fold's own under ``folds``; itself where None is the only one.

    A title without predictions in some fold has no means, for folds are not equally hard. Counts are sums over folds;
    ``seeds`` are those with predictions in every fold, and a seed's value is its mean over folds.
    """
    if experiment.folds is None:
        return summarise(experiment, told[None], samples[None])
    populations = {part: _users(told, part) for part in SLICES}
    found = {fold: resample(experiment, one, populations) for fold, one in told.items()}
    rows = {fold: rows_of(one, found[fold]) for fold, one in told.items()}
    each = {fold: compare(experiment, found[fold], rows[fold], samples[fold]) for fold in told}
    titles = experiment.config.systems
    by_title = {title: {part: [one[part][title] for one in found.values()] for part in SLICES} for title in titles}
    pooled: Found = {part: {title: _mean(by_title[title][part]) for title in titles} for part in SLICES}
    together = {title: _together({fold: rows[fold][title] for fold in told}, by_title[title]) for title in titles}
    sample = "; ".join(f"fold {fold}: {text.rstrip('.')}" for fold, text in samples.items())
    return compare(experiment, pooled, together, sample) | {
        "folds": {str(fold): {key: one[key] for key in _OF_A_FOLD} for fold, one in each.items()}
    }


def _users(told: Mapping[int | None, Mapping[str, Told]], part: str) -> npt.NDArray[np.int64]:
    """Every user with rows of the slice in some fold."""
    frames = [
        frame["user_id"].to_numpy()
        for of_fold in told.values()
        for one in of_fold.values()
        for frame in masked(one.predictions, part).values()
    ]
    return np.unique(np.concatenate([np.empty(0, np.int64), *frames]))


def _mean(folds: Sequence[Resampled | None]) -> Resampled | None:
    there = [one for one in folds if one is not None]
    return mean_of_folds(there) if len(there) == len(folds) else None


def _together(rows: Mapping[int | None, Row], found: Mapping[str, Sequence[Resampled | None]]) -> Row:
    """One row of the tables out of each fold's."""
    folds = list(rows.values())
    seeds = sorted(set.intersection(*(set(row.seeds) for row in folds)))
    lost = sorted({seed for row in folds for seed in row.failures})
    whole = all(row.seeds for row in folds)
    return Row(
        seeds=seeds,
        failures={
            seed: "; ".join(f"fold {fold}: {row.failures[seed]}" for fold, row in rows.items() if seed in row.failures)
            for seed in lost
        },
        counts={part: _sums([row.counts[part] for row in folds]) if whole else {} for part in SLICES},
        metrics={part: _metrics(folds, found[part], seeds) for part in SLICES},
        cost=_mean_cost([row.cost for row in folds], seeds),
    )


def _mean_cost(folds: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Parameters, which grow with users and items, and seconds as means over folds."""
    parameters = [one["parameters"] for one in folds]
    spent = {str(seed): [one["seconds"].get(str(seed), {}) for one in folds] for seed in seeds}
    return {
        "parameters": None if None in parameters else sum(parameters) / len(parameters),
        "seconds": {
            seed: {stage: math.fsum(one[stage] for one in each) / len(each) for stage in each[0]} if all(each) else {}
            for seed, each in spent.items()
        },
    }


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {key: sum(one[key] for one in counts) for key in counts[0]}


def _metrics(rows: Sequence[Row], found: Sequence[Resampled | None], seeds: Sequence[int]) -> dict[str, Any]:
    """Metric -> mean over folds, spread over seeds within them, and each seed's mean over folds."""
    mean = _mean(found)
    if mean is None:
        return {}
    folds = [dict(zip(row.seeds, one.each, strict=True)) for row, one in zip(rows, found, strict=True) if one]
    return {
        name: {
            **mean_and_interval(mean, name),
            "sd": plain(pooled_deviation([[values[name] for values in fold.values()] for fold in folds])),
            "seeds": {str(seed): plain(math.fsum(fold[seed][name] for fold in folds) / len(folds)) for seed in seeds},
        }
        for name in METRICS
    }
