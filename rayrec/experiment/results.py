"""From the pairs' predictions to numbers: means and spreads over seeds, paired differences, who is really best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rayrec.config import Config
from rayrec.experiment.settings import Experiment, is_trained
from rayrec.experiment.traces import cost
from rayrec.metrics import (
    METRICS,
    SLICES,
    Difference,
    Estimate,
    Resampled,
    pooled_difference,
    relative_change,
    resampled_mean,
)
from rayrec.report.tables import LOWER_IS_BETTER
from rayrec.systems import SystemName

COMPARED = ("auc", "uauc", "log_loss", "accuracy", "f1")
_ABLATED = ("auc", "uauc")
LEVEL = 0.05  # of "significantly better than the second"

Found = Mapping[str, Mapping[str, Resampled | None]]  # slice -> title -> its metrics, None without predictions


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of one row of the tables."""

    predictions: Mapping[int, pd.DataFrame]  # seed -> rows with PREDICTIONS_SCHEMA's columns, the same rows for all
    failures: Mapping[int, str]  # seed -> why it has none
    chosen: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # on validation: seed -> name -> number
    progress: Mapping[int, pd.DataFrame] = field(default_factory=dict)  # seed -> what ``read_progress`` returns
    parameters: int | None = None  # what ``trained_parameters`` returns


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the tables show of a title, beside how it compares with others."""

    seeds: Sequence[int]  # with predictions
    failures: Mapping[int, str]
    counts: Mapping[str, Mapping[str, int]]  # of every slice
    metrics: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Any]  # what ``cost`` returns
    weights: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # of an ensemble, where there is one split


def summarise(experiment: Experiment, told: Mapping[str, Told], sample: str) -> dict[str, Any]:
    """Everything that the tables show, as plain data for JSON (null, never NaN)."""
    found = resample(experiment, told)
    return compare(experiment, found, rows_of(told, found), sample)


def resample(
    experiment: Experiment, told: Mapping[str, Told], populations: Mapping[str, npt.NDArray[Any]] = {}
) -> Found:
    """The metrics of every slice and title; the users to draw from are those of the slice's rows unless named."""
    return {
        part: {
            title: _resampled(masked(one.predictions, part), experiment.base, populations.get(part))
            for title, one in told.items()
        }
        for part in SLICES
    }


def rows_of(told: Mapping[str, Told], found: Found) -> dict[str, Row]:
    """Counts, means, spreads and the values of each seed."""
    return {
        title: Row(
            seeds=sorted(one.predictions),
            failures=one.failures,
            counts={part: _counts(masked(one.predictions, part)) for part in SLICES},
            metrics={part: _metrics(found[part][title], sorted(one.predictions)) for part in SLICES},
            weights=one.chosen,
            cost=cost(one.progress, one.parameters),
        )
        for title, one in told.items()
    }


def compare(experiment: Experiment, found: Found, rows: Mapping[str, Row], sample: str) -> dict[str, Any]:
    """The rows with their differences from the reference, and who is best."""
    config, base = experiment.config, experiment.base
    reference = {part: found[part][config.reference] for part in SLICES}
    return {
        "experiment": config.name,
        "dataset": base.data.dataset,
        "sample": sample,
        "reference": config.reference,
        "seeds": list(config.seeds),
        "resamples": base.evaluation.bootstrap,
        "cutoff": base.evaluation.cutoff,
        "systems": {
            title: {
                "system": config.systems[title].system.value,
                "is_trained": is_trained(config.systems[title].system),
                "set": dict(config.systems[title].set),
                **_weights(row),
                "seeds": list(row.seeds),
                "failures": {str(seed): reason for seed, reason in sorted(row.failures.items())},
                "cost": row.cost,
                "relative_improvement": _relative(found["all"][title], reference["all"]),
                "slices": {
                    part: {
                        "counts": row.counts[part],
                        "metrics": row.metrics[part],
                        "minus_reference": _minus(found[part][title], reference[part]),
                    }
                    for part in SLICES
                },
            }
            for title, row in rows.items()
        },
        "ablation": _ablation(experiment, found["all"]),
        "best": {part: {metric: _best(found[part], metric) for metric in COMPARED} for part in SLICES},
    }


def _weights(row: Row) -> dict[str, Any]:
    """Nothing for all but ensembles."""
    return {"weights": {str(seed): dict(own) for seed, own in sorted(row.weights.items())}} if row.weights else {}


def masked(predictions: Mapping[int, pd.DataFrame], part: str) -> dict[int, pd.DataFrame]:
    """The rows of a slice."""
    masks = {
        "warm": lambda frame: frame["is_warm"],
        "cold": lambda frame: ~frame["is_warm"],
        "strict_cold": lambda frame: frame["is_strict_cold"],
    }
    return {seed: frame[masks[part](frame)] if part in masks else frame for seed, frame in predictions.items()}


def _resampled(
    predictions: Mapping[int, pd.DataFrame], base: Config, population: npt.NDArray[Any] | None
) -> Resampled | None:
    """None without predictions."""
    if not predictions:
        return None
    frames = [predictions[seed] for seed in sorted(predictions)]
    settings = base.evaluation
    return resampled_mean(
        frames[0]["user_id"].to_numpy(),
        frames[0]["label"].to_numpy(),
        [frame["score"].to_numpy() for frame in frames],
        cutoff=settings.cutoff,
        resamples=settings.bootstrap,
        seed=base.seed,
        population=population,
    )


def _counts(predictions: Mapping[int, pd.DataFrame]) -> dict[str, int]:
    if not predictions:
        return {}
    frame = next(iter(predictions.values()))
    both = frame.groupby("user_id")["label"].nunique() == 2
    return {"rows": len(frame), "users": len(both), "users_with_both_classes": int(both.sum())}


def _metrics(found: Resampled | None, seeds: Sequence[int]) -> dict[str, Any]:
    """Metric -> mean, its 95% interval over users, sample standard deviation over seeds, and each seed's value."""
    result: dict[str, Any] = {}
    for name in METRICS if found is not None else ():
        assert found is not None
        values = [each[name] for each in found.each]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        result[name] = {
            **mean_and_interval(found, name),
            "sd": plain(spread),
            "seeds": {str(seed): plain(value) for seed, value in zip(seeds, values, strict=True)},
        }
    return result


def mean_and_interval(found: Resampled, name: str) -> dict[str, float | None]:
    """A metric's mean and the ends of its 95% interval over users."""
    mean, low, high = found.estimate(name)
    return {"mean": plain(mean), "low": plain(low), "high": plain(high)}


def _minus(found: Resampled | None, reference: Resampled | None) -> dict[str, Any]:
    if found is None or reference is None or found is reference:
        return {}
    differences = pooled_difference(found, reference)
    return {name: _as_dict(differences[name]) for name in COMPARED}


def _ablation(experiment: Experiment, resampled: Mapping[str, Resampled | None]) -> dict[str, Any]:
    """Relative changes of AUC and UAUC against the untouched backbone as in the paper's figure 10, or the reference."""
    config = experiment.config
    untouched = (title for title, entry in config.systems.items() if entry.system is SystemName.ICL)
    against = next((title for title in untouched if resampled[title]), config.reference)
    base = resampled[against]
    changes = {
        title: relative_change(found, base)
        for title, found in resampled.items()
        if found and base and found is not base
    }
    return {
        "against": against,
        "changes": {title: {name: _as_dict(found[name]) for name in _ABLATED} for title, found in changes.items()},
    }


def _relative(found: Resampled | None, reference: Resampled | None) -> float | None:
    """(AUC + UAUC) / that of the reference - 1."""
    if found is None or reference is None:
        return None
    own, other = (one.values["auc"] + one.values["uauc"] for one in (found, reference))
    return plain(own / other - 1) if other else None


def _best(resampled: Mapping[str, Resampled | None], metric: str) -> dict[str, Any] | None:
    """The best title, the second, their difference, and whether it is more than chance; None for fewer than two."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    there = {title: found for title, found in resampled.items() if found and math.isfinite(found.values[metric])}
    ranked = sorted(there, key=lambda title: sign * there[title].values[metric])  # of equals the first in the file
    if len(ranked) < 2:
        return None
    best, second = ranked[:2]
    difference = pooled_difference(there[best], there[second])[metric]
    return {
        "title": best,
        "second": second,
        "difference": _as_dict(difference),
        "is_significant": bool(difference.p < LEVEL),
    }


def _as_dict(found: Difference | Estimate) -> dict[str, float | None]:
    return {key: plain(value) for key, value in found._asdict().items()}


def plain(value: float) -> float | None:
    """None for what is no number."""
    return float(value) if math.isfinite(value) else None
