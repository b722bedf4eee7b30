"""What the figures of an experiment show beside ``results.json``, as tables: one row for each thing drawn."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import confusion_matrix

from rayrec.data import columns as c
from rayrec.data.rows import RowSource
from rayrec.data.store import open_table
from rayrec.evaluation.sample import test_sample
from rayrec.experiment.results import Told
from rayrec.experiment.traces import LOSS, STAGE, STEP, VALID_AUC
from rayrec.metrics import quantile_bin, reliability
from rayrec.metrics.pointwise import auc
from rayrec.report import Evidence
from rayrec.run import Run
from rayrec.stages import Stream

POPULARITY: Final = "popularity"
_FOLD: Final = "fold"
_RELIABILITY_BINS: Final = 10
_STRATA: Final = 5  # bins of a count: more would leave a sample of test rows too few in each
_POINTS: Final = 60  # of a stage's loss curve
_ANSWERS: Final = ("dislike", "like")  # in the order of the labels

FloatArray = npt.NDArray[np.float64]


def row_counts(run: Run) -> pd.DataFrame:
    """Of each scored test row: item, liked items in the history (seen), training rows of the item (popularity).

    All systems have the same test rows; a bin of them is drawn for all, so one run's data tells for the others, too.
    """
    source = RowSource(run.data.folder, "test", Stream.INTERACTIONS, run.facts.max_len)
    rows: pd.DataFrame = source.open().frame(test_sample(run)).to_pandas()[[c.ITEM_ID, c.SEEN]]
    items = rows[c.ITEM_ID].to_numpy()
    trained = open_table(f"{run.data.folder}/train.parquet")[c.ITEM_ID].to_numpy()
    rows[POPULARITY] = np.bincount(trained, minlength=items.max() + 1)[items]
    return rows


def gather(
    told: Mapping[int | None, Mapping[str, Told]], counts: Mapping[int | None, pd.DataFrame], cutoff: float
) -> Evidence:
    """All of it, of the titles that have predictions in every fold, and of the seeds that have.

    The rows of all folds are taken together, but AUCs: these are of each fold, then averaged, as in the tables.

    Args:
        told: by fold, None for the only one, and title.
        counts: what ``row_counts`` returns, by fold.
        cutoff: a score of at least this counts as a like.
    """
    seeds = {title: _common_seeds(told, title) for title in next(iter(told.values()))}
    scored = {
        title: [_rows_of_all_folds(told, counts, title, seed) for seed in own] for title, own in seeds.items() if own
    }
    return Evidence(
        confusion=_joined(_confusion(title, frames, cutoff) for title, frames in scored.items()),
        calibration=_joined(_calibration(title, frames) for title, frames in scored.items()),
        by_history=_joined(_by_count(title, frames, c.SEEN) for title, frames in scored.items()),
        by_popularity=_joined(_by_count(title, frames, POPULARITY) for title, frames in scored.items()),
        training=_training(told, seeds),
    )


def _common_seeds(told: Mapping[int | None, Mapping[str, Told]], title: str) -> list[int]:
    return sorted(set.intersection(*(set(of_fold[title].predictions) for of_fold in told.values())))


def _rows_of_all_folds(
    told: Mapping[int | None, Mapping[str, Told]], counts: Mapping[int | None, pd.DataFrame], title: str, seed: int
) -> pd.DataFrame:
    """Label, score, fold (a number) and counts of the rows that one seed scored."""
    found = []
    for number, fold in enumerate(told):
        rows = told[fold][title].predictions[seed][[c.ITEM_ID, c.LABEL, c.SCORE]].reset_index(drop=True)
        assert rows[c.ITEM_ID].equals(counts[fold][c.ITEM_ID]), "predictions of other rows"
        found.append(rows.assign(**{_FOLD: number, **{name: counts[fold][name] for name in (c.SEEN, POPULARITY)}}))
    return _joined(found)


def _confusion(title: str, frames: Sequence[pd.DataFrame], cutoff: float) -> pd.DataFrame:
    """Four cells: how many rows, and which share of the rows with that label."""
    counts = [
        confusion_matrix(frame[c.LABEL] == 1, frame[c.SCORE] >= cutoff, labels=[False, True]).astype(np.float64)
        for frame in frames
    ]
    with np.errstate(invalid="ignore"):  # no share of a label that no row has
        shares = [each / each.sum(axis=1, keepdims=True) for each in counts]
    cells = {"title": title, "label": np.repeat(_ANSWERS, 2), "predicted": np.tile(_ANSWERS, 2)}
    return _frame(cells, len(frames), count=counts, share=shares)


def _calibration(title: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    found = [reliability(frame[c.LABEL], frame[c.SCORE], bins=_RELIABILITY_BINS) for frame in frames]
    rows, scores, shares = zip(*found, strict=True)
    bins = {"title": title, "bin": np.arange(len(rows[0])), "rows": rows[0]}
    return _frame(bins, len(frames), score=scores, share=shares)


def _by_count(title: str, frames: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """AUC in the quantile bins of a column, the same bins for all."""
    place = quantile_bin(frames[0][column], _STRATA)
    values = [rows for _, rows in frames[0][column].groupby(place)]
    bins = {"title": title, "bin": np.arange(len(values))}
    bins |= {"low": [v.min() for v in values], "high": [v.max() for v in values], "rows": [len(v) for v in values]}
    aucs = [np.array([_mean_auc(rows) for _, rows in frame.groupby(place)], dtype=np.float64) for frame in frames]
    return _frame(bins, len(frames), auc=aucs)


def _mean_auc(rows: pd.DataFrame) -> float:
    """Over folds; NaN where one has one class only."""
    each = [auc(own[c.LABEL], own[c.SCORE]) for _, own in rows.groupby(_FOLD)]
    return math.fsum(each) / len(each)


def _training(told: Mapping[int | None, Mapping[str, Told]], seeds: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """A column ``fold`` only where there are folds."""
    names = ["title", *([] if None in told else [_FOLD]), "seed", STAGE, STEP, LOSS, VALID_AUC]
    return _joined(
        _thinned(rows).assign(title=title, fold=fold, seed=seed, stage=stage)[names]
        for title, own in seeds.items()
        for fold, of_fold in told.items()
        for seed in own
        if seed in of_fold[title].progress
        for stage, rows in of_fold[title].progress[seed].groupby(STAGE, sort=False)
    )


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one stage: at most ``_POINTS`` mean losses, each of the steps since the one before, and every evaluation."""
    window = np.arange(len(rows)) // -(-len(rows) // _POINTS)
    losses = rows.groupby(window).agg({STEP: "last", LOSS: "mean"})
    judged = rows.loc[rows[VALID_AUC].notna(), [STEP, VALID_AUC]]
    both: pd.DataFrame = losses.merge(judged, on=STEP, how="outer", sort=True)
    return both


def _frame(keys: Mapping[str, Any], seeds: int, **values: Sequence[FloatArray]) -> pd.DataFrame:
    """``keys``, and each value's mean over seeds and, as ``{name}_sd``, its sample deviation: NaN for one seed."""
    columns = dict(keys)
    for name, each in values.items():
        stacked = np.stack([one.ravel() for one in each])
        columns[name] = stacked.mean(axis=0)
        columns[f"{name}_sd"] = stacked.std(axis=0, ddof=1) if seeds > 1 else math.nan
    frame: pd.DataFrame = pd.DataFrame(columns | {"seeds": seeds})
    return frame


def _joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One below the other; of none, what has titles and no row."""
    found = list(frames) or [pd.DataFrame({"title": []})]
    whole: pd.DataFrame = pd.concat(found, ignore_index=True)
    return whole
