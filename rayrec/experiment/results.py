"""From the pairs' predictions to numbers: means and spreads over seeds, paired differences, who is really best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rayrec.config import Config
from rayrec.experiment.settings import Experiment, is_trained
from rayrec.metrics import METRICS, SLICES, Difference, Resampled, pooled_difference, resampled_mean
from rayrec.report.tables import LOWER_IS_BETTER

COMPARED = ("auc", "uauc", "log_loss", "accuracy", "f1")
_LEVEL = 0.05  # of "significantly better than the second"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of one row of the tables."""

    predictions: Mapping[int, pd.DataFrame]  # seed -> rows with PREDICTIONS_SCHEMA's columns, the same rows for all
    failures: Mapping[int, str]  # seed -> why it has none


def summarise(experiment: Experiment, told: Mapping[str, Told], sample: str) -> dict[str, Any]:
    """Everything that the tables show, as plain data for JSON (null, never NaN)."""
    config, base = experiment.config, experiment.base
    resampled = {
        part: {title: _resampled(_masked(one.predictions, part), base) for title, one in told.items()}
        for part in SLICES
    }
    reference = {part: found[config.reference] for part, found in resampled.items()}
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
                "seeds": sorted(one.predictions),
                "failures": {str(seed): reason for seed, reason in sorted(one.failures.items())},
                "relative_improvement": _relative(resampled["all"][title], reference["all"]),
                "slices": {
                    part: {
                        "counts": _counts(_masked(one.predictions, part)),
                        "metrics": _metrics(resampled[part][title], sorted(one.predictions)),
                        "minus_reference": _minus(resampled[part][title], reference[part]),
                    }
                    for part in SLICES
                },
            }
            for title, one in told.items()
        },
        "best": {part: {metric: _best(resampled[part], metric) for metric in COMPARED} for part in SLICES},
    }


def _masked(predictions: Mapping[int, pd.DataFrame], part: str) -> dict[int, pd.DataFrame]:
    """The rows of a slice."""
    masks = {
        "warm": lambda frame: frame["is_warm"],
        "cold": lambda frame: ~frame["is_warm"],
        "strict_cold": lambda frame: frame["is_strict_cold"],
    }
    return {seed: frame[masks[part](frame)] if part in masks else frame for seed, frame in predictions.items()}


def _resampled(predictions: Mapping[int, pd.DataFrame], base: Config) -> Resampled | None:
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
    )


def _counts(predictions: Mapping[int, pd.DataFrame]) -> dict[str, int]:
    if not predictions:
        return {}
    frame = next(iter(predictions.values()))
    both = frame.groupby("user_id")["label"].nunique() == 2
    return {"rows": len(frame), "users": len(both), "users_with_both_classes": int(both.sum())}


def _metrics(found: Resampled | None, seeds: Sequence[int]) -> dict[str, Any]:
    """Metric -> mean, sample standard deviation over seeds, and each seed's value."""
    result: dict[str, Any] = {}
    for name in METRICS if found is not None else ():
        assert found is not None
        values = [each[name] for each in found.each]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        result[name] = {
            "mean": _plain(found.values[name]),
            "sd": _plain(spread),
            "seeds": {str(seed): _plain(value) for seed, value in zip(seeds, values, strict=True)},
        }
    return result


def _minus(found: Resampled | None, reference: Resampled | None) -> dict[str, Any]:
    if found is None or reference is None or found is reference:
        return {}
    differences = pooled_difference(found, reference)
    return {name: _as_dict(differences[name]) for name in COMPARED}


def _relative(found: Resampled | None, reference: Resampled | None) -> float | None:
    """(AUC + UAUC) / that of the reference - 1."""
    if found is None or reference is None:
        return None
    own, other = (one.values["auc"] + one.values["uauc"] for one in (found, reference))
    return _plain(own / other - 1) if other else None


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
        "is_significant": bool(difference.p < _LEVEL),
    }


def _as_dict(difference: Difference) -> dict[str, float | None]:
    return {key: _plain(value) for key, value in difference._asdict().items()}


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
