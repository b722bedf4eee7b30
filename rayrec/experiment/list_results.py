"""Of next items: from the pairs' lists to means and spreads over seeds, and paired differences over sessions."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rayrec.data import columns as c
from rayrec.evaluation.sample import but_for
from rayrec.experiment.results import LEVEL, Told, plain
from rayrec.experiment.settings import Experiment, is_trained
from rayrec.experiment.traces import cost
from rayrec.metrics import (
    Difference,
    answer_shares,
    catalogue_coverage,
    session_differences,
    session_estimates,
    session_metrics,
)
from rayrec.metrics.pointwise import FloatArray
from rayrec.report.list_page import COMMON
from rayrec.sessions import Index, Sessions

_COVERAGE = "coverage"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A title's metrics."""

    sessions: Index  # that it was asked for, by id
    values: Mapping[str, FloatArray]  # metric -> mean over seeds, one number a session
    each: Mapping[str, Sequence[float]]  # metric, coverage too -> every seed's

    def of(self, sessions: Index) -> dict[str, FloatArray]:
        """The values of those of its sessions that are among ``sessions``."""
        inside = np.isin(self.sessions, sessions)
        return {name: column[inside] for name, column in self.values.items()}


def summarise_lists(experiment: Experiment, told: Mapping[str, Told], counts: Index, sample: str) -> dict[str, Any]:
    """Everything that the tables show, as plain data for JSON; as ``results.summarise``, of all sessions.

    Metrics are those of the longest lists. ``counts`` are each item's events in training. Where a title was asked for
    fewer sessions than others, the slice ``common`` is of those that all were asked for.
    """
    config, settings = experiment.config, experiment.base.evaluation
    k = max(settings.ks)
    whole = {title: _found(one, counts, k) if one.predictions else None for title, one in told.items()}
    asked = {title: len(one.sessions) for title, one in whole.items() if one is not None}
    slices = {"all": whole}
    if len(set(asked.values())) > 1:
        common = functools.reduce(np.intersect1d, (one.sessions for one in whole.values() if one is not None))
        slices[COMMON] = {
            title: None if one is None else _found(told[title], counts, k, common) for title, one in whole.items()
        }
    names = [f"{name}@{k}" for name in ("ndcg", "hr", "mrr", _COVERAGE, "serendipity", "novelty")]
    systems = {}
    for title, one in told.items():
        entry = config.systems[title]
        systems[title] = {
            "system": entry.system.value,
            "is_trained": is_trained(entry.system),
            "set": dict(entry.set),
            **({"chosen": {str(seed): dict(own) for seed, own in sorted(one.chosen.items())}} if one.chosen else {}),
            "seeds": sorted(one.predictions),
            "failures": {str(seed): reason for seed, reason in sorted(one.failures.items())},
            "cost": cost(one.progress, one.parameters),
            "slices": {part: _slice(title, found, names, one, experiment) for part, found in slices.items()},
        } | _answers(one)
    return {
        "experiment": config.name,
        "dataset": experiment.base.data.dataset,
        "sample": f"{sample}{but_for(asked)}",
        "reference": config.reference,
        "seeds": list(config.seeds),
        "resamples": settings.bootstrap,
        "metrics": names,
        "systems": systems,
        "best": {part: {name: _best(found, name, experiment) for name in names} for part, found in slices.items()},
    }


def _slice(
    title: str, found: Mapping[str, _Found | None], names: Sequence[str], told: Told, experiment: Experiment
) -> dict[str, Any]:
    own, reference = found[title], found[experiment.config.reference]
    if own is None:
        return {"counts": {}, "metrics": {}, "minus_reference": {}}
    is_other = reference is not None and title != experiment.config.reference
    return {
        "counts": {"sessions": len(own.sessions)},
        "metrics": _metrics(own, names, sorted(told.predictions), experiment),
        "minus_reference": _differences(own, reference, experiment) if is_other else {},
    }


def _answers(told: Told) -> dict[str, Any]:
    """What became of answers in words, of all seeds together."""
    frames = [frame for frame in told.predictions.values() if c.SAID in frame]
    if not frames:
        return {}
    names = pd.concat(frames)
    return {"answers": answer_shares(names[c.SAID], names[c.UNKNOWN], names[c.BARRED])}


def _found(told: Told, counts: Index, k: int, only: Index | None = None) -> _Found:
    """All of its sessions, or ``only`` some."""
    values: dict[str, list[FloatArray]] = {}
    coverage = []
    for _, whole in sorted(told.predictions.items()):
        frame = whole if only is None else whole[whole[c.USER_ID].isin(only)]
        lists, held_out = _lists(frame, k)
        for name, column in session_metrics(lists, held_out, counts, (k,)).items():
            values.setdefault(name, []).append(column)
        coverage.append(catalogue_coverage(lists, len(counts) - 1, k))
    each = {name: [float(column.mean()) for column in columns] for name, columns in values.items()}
    return _Found(
        sessions=frame[c.USER_ID].to_numpy(),
        values={name: np.mean(columns, axis=0) for name, columns in values.items()},
        each=each | {f"{_COVERAGE}@{k}": coverage},
    )


def _lists(frame: pd.DataFrame, k: int) -> tuple[Index, Sessions]:
    lists = np.zeros((len(frame), k), np.int64)
    for row, ranked in enumerate(frame[c.RANKED]):
        lists[row, : len(ranked)] = ranked[:k]
    return lists, Sessions.of(frame[c.HELD_OUT])


def _metrics(found: _Found, names: Sequence[str], seeds: Sequence[int], experiment: Experiment) -> dict[str, Any]:
    """Metric -> mean, its 95% interval over sessions, sample standard deviation over seeds, and each seed's value."""
    settings = experiment.base.evaluation
    estimates = session_estimates(found.values, resamples=settings.bootstrap, seed=experiment.base.seed)
    result = {}
    for name in names:
        each = found.each[name]
        low, high = (estimates[name].low, estimates[name].high) if name in estimates else (math.nan, math.nan)
        result[name] = {
            "mean": plain(math.fsum(each) / len(each)),
            "low": plain(low),
            "high": plain(high),
            "sd": plain(float(np.std(each, ddof=1)) if len(each) > 1 else math.nan),
            "seeds": {str(seed): plain(value) for seed, value in zip(seeds, each, strict=True)},
        }
    return result


def _paired(one: _Found, other: _Found, experiment: Experiment) -> dict[str, Difference]:
    """In the sessions that both were asked for."""
    settings = experiment.base.evaluation
    values, others = one.of(other.sessions), other.of(one.sessions)
    return session_differences(values, others, resamples=settings.bootstrap, seed=experiment.base.seed)


def _differences(one: _Found | None, other: _Found | None, experiment: Experiment) -> dict[str, Any]:
    assert one is not None and other is not None
    return {name: _as_dict(difference) for name, difference in _paired(one, other, experiment).items()}


def _best(found: Mapping[str, _Found | None], metric: str, experiment: Experiment) -> dict[str, Any] | None:
    """The best title, the second, their difference, and whether it is more than chance; None for fewer than two.

    Of coverage nothing is known of chance. Who was asked for fewer sessions than others does not compete.
    """
    most = max((len(one.sessions) for one in found.values() if one is not None), default=0)
    there = {
        title: one
        for title, one in found.items()
        if one is not None and metric in one.values and len(one.sessions) == most
    }
    ranked = sorted(there, key=lambda title: -there[title].values[metric].mean())  # of equals the first in the file
    if len(ranked) < 2:
        return None
    best, second = ranked[:2]
    difference = _paired(there[best], there[second], experiment)[metric]
    return {
        "title": best,
        "second": second,
        "difference": _as_dict(difference),
        "is_significant": bool(difference.p < LEVEL),
    }


def _as_dict(difference: Difference) -> dict[str, float | None]:
    return {key: plain(value) for key, value in difference._asdict().items()}
