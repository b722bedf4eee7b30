"""The report of a hyperparameter search: one HTML file, its figures as PNG, its tables as CSV, like a run's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from rayrec.report import search_figures as figures
from rayrec.report import tables
from rayrec.report.page import Drawn, write_page
from rayrec.report.scales import Mode, is_cut, short_names
from rayrec.report.search_figures import Standing
from rayrec.report.tables import Cell, Table

_VALIDATION: Final = "Values are on validation data; the test set was not read."
_REASON: Final = 240  # characters of a reason on the page; the CSV file has all
_FACTS: Final = ("trial", "status", "reason", "value", "best_step", "steps", "planned_steps", "seconds")


@dataclass(frozen=True, kw_only=True)
class SearchReportData:
    """All that the page of a search shows."""

    title: str
    metric: str  # what the trials report, on validation data
    mode: Mode
    space: Mapping[str, str]  # dotted path of the configuration -> words; "log…" and "one of …" choose the axis
    # In order: trial, status ("complete" | "stopped" | "interrupted" | "failed"), reason, value (the best it reported,
    # or NaN), best_step, steps, planned_steps, seconds, and each path of the space with the trial's value.
    trials: pd.DataFrame
    evaluations: pd.DataFrame  # trial, step, value: all that was reported
    importance: Mapping[str, float]  # path -> share; empty where the trials are too few to tell
    schedulers: Sequence[Mapping[str, Any]]  # records of this search and of others over the same space
    best_yaml: str  # configuration of the best trial
    versions: Mapping[str, str]  # package -> version
    notes: Sequence[str]  # limits a reader must know


def write_search_report(data: SearchReportData, folder: Path) -> Path:
    """Writes ``folder/index.html``, ``folder/figures/*.png`` and ``folder/tables/*.csv``; returns the page's path.

    The same data gives the same bytes. A failed trial is shown, but has no rank, whatever it reported before.
    """
    ranks = figures.standing(data.trials, data.mode)
    return write_page(
        folder,
        "search.html.j2",
        {item.name: item for item in _figures(data, ranks)},
        {table.name: table for table in _tables(data, ranks)},
        data=data,
        lead=_lead(data, ranks),
    )


def _lead(data: SearchReportData, ranks: Standing) -> str:
    states = data.trials["status"].value_counts()
    words = {"complete": "complete", "stopped": "stopped early", "interrupted": "interrupted", "failed": "failed"}
    counts = ", ".join(f"{states[status]} {text}" for status, text in words.items() if status in states)
    ran = f"{len(data.trials)} trial{'' if len(data.trials) == 1 else 's'}: {counts or 'none ran'}."
    if ranks.best is None:
        return f"No trial gave a value of {data.metric}. {ran}"
    best = data.trials.iloc[ranks.best]
    extreme = "Highest" if data.mode == "max" else "Lowest"
    value = _value(float(ranks.values[ranks.best]))
    return f"{extreme} {data.metric}: {value}, trial {best['trial']} at step {_amount(best['best_step'])}. {ran}"


def _figures(data: SearchReportData, ranks: Standing) -> list[Drawn]:
    trials, metric, mode = data.trials, data.metric, data.mode
    better = "more" if mode == "max" else "less"
    far = "that are worse than the rest by far"
    at_edge = f" Values {far} are drawn at the edge." if is_cut(ranks.values, mode) else ""
    reported = figures.worst_reported(data.evaluations, mode)
    leaves = f" Evaluations {far} lie outside." if is_cut(reported, mode) else ""
    made = [
        Drawn(
            name="history",
            figure=figures.history_figure(trials, ranks, metric, mode),
            caption=f"The best {metric} that each trial reported ({better} is better), in the order of the trials; the "
            f"line: best so far. Crosses at the bottom: trials without a value that counts.{at_edge} {_VALIDATION}",
        ),
        Drawn(
            name="learning",
            figure=figures.learning_figure(trials, data.evaluations, ranks, metric, mode),
            caption=f"Every evaluation of every trial; {better} is better.{leaves} {_VALIDATION}",
        ),
        Drawn(
            name="parallel",
            figure=figures.parallel_figure(trials, data.space, ranks, metric, mode),
            caption=f"A line is a trial: its parameters, then its {metric}, which also gives the colour. Choices are "
            f"evenly spaced, and ranges go from the least to the largest value tried.{at_edge} {_VALIDATION}",
        ),
        Drawn(name="savings", figure=figures.savings_figure(trials), caption=_saved(trials)),
    ]
    if data.importance:
        made.append(
            Drawn(
                name="importance",
                figure=figures.importance_figure(data.importance),
                caption=f"How much of the differences in {metric} between the trials each parameter explains: an "
                f"estimate, and a rough one while trials are few. {_VALIDATION}",
            )
        )
    return made


def _saved(trials: pd.DataFrame) -> str:
    ran = trials[trials["status"] != "failed"]
    planned = ran["planned_steps"].to_numpy(dtype=np.float64)
    trained = ran["steps"].to_numpy(dtype=np.float64)
    known = np.isfinite(planned) & np.isfinite(trained)
    total, saved = planned[known].sum(), np.clip(planned[known] - trained[known], 0, None).sum()
    if not total:
        return "A bar is a trial; no trial that did not fail has planned steps."
    return (
        f"A bar is a trial. Early stopping saved {100 * saved / total:.1f}% of the steps: {saved:,.0f} of the "
        f"{total:,.0f} planned for trials that did not fail."
    )


def _tables(data: SearchReportData, ranks: Standing) -> list[Table]:
    return [
        _trial_table(data, ranks),
        _space_table(data, ranks),
        _scheduler_table(data.schedulers),
        tables.pairs_table("versions", data.versions, f"Packages that produced these numbers. {_VALIDATION}"),
    ]


def _trial_table(data: SearchReportData, ranks: Standing) -> Table:
    names = short_names(list(data.space))
    ranked = [int(rank) if np.isfinite(ranks.values[place]) else None for rank, place in enumerate(ranks.order, 1)]
    ordered = data.trials.iloc[list(ranks.order)]
    rows = []
    for rank, (_, trial) in zip(ranked, ordered.iterrows(), strict=True):
        value, of = tables.number(trial["value"]), tables.number(trial["planned_steps"])
        rows.append(
            (
                Cell(tables.DASH if rank is None else str(rank)),
                _cell(trial["trial"]),
                Cell(_value(value), _at(trial["best_step"]) if np.isfinite(value) else "", best=rank == 1),
                Cell(_amount(trial["steps"]), f"of {_amount(of)}" if np.isfinite(of) else ""),
                Cell(_amount(trial["seconds"])),
                Cell(str(trial["status"]), _shortened(trial["reason"]), number=False),
                *(_cell(trial[path]) for path in data.space),
            )
        )
    csv = ordered[[*_FACTS, *data.space]].copy()
    csv.insert(0, "rank", pd.array(ranked, dtype="Int64"))
    csv.insert(csv.columns.get_loc("value") + 1, "best_so_far", ranks.so_far[list(ranks.order)])
    return Table(
        name="trials",
        caption=f"All trials, best first; those without a value that counts come last. {_VALIDATION} In the CSV file, "
        "best_so_far is the best value of the trial and those before it in order.",
        header=("Rank", "Trial", data.metric, "Steps", "Seconds", "Status", *names.values()),
        rows=tuple(rows),
        csv=csv,
    )


def _space_table(data: SearchReportData, ranks: Standing) -> Table:
    best = None if ranks.best is None else data.trials.iloc[ranks.best]
    rows, records = [], []
    for path, words in data.space.items():
        value = None if best is None else best[path]
        share = tables.number(data.importance.get(path))
        told = Cell(tables.DASH if np.isnan(share) else f"{100 * share:.0f}%")
        rows.append((Cell(path, number=False), Cell(words, number=False), _cell(value)._replace(number=True), told))
        records.append({"parameter": path, "values": words, "best": value, "importance": share})
    return Table(
        name="space",
        caption=f"What was varied, what the best trial had, and each parameter’s importance. {_VALIDATION}",
        header=("Parameter", "Values", "Best trial", "Importance"),
        rows=tuple(rows),
        csv=pd.DataFrame(records, columns=["parameter", "values", "best", "importance"]),
    )


def _scheduler_table(records: Sequence[Mapping[str, Any]]) -> Table:
    keys = tuple(dict.fromkeys(str(key) for record in records for key in record))
    return Table(
        name="schedulers",
        caption=f"This search, and others over the same space where there are any. {_VALIDATION}",
        header=tuple(key.replace("_", " ").capitalize() for key in keys) or ("Scheduler",),
        rows=tuple(tuple(_cell(record.get(key)) for key in keys) for record in records),
        csv=pd.DataFrame([{key: record.get(key) for key in keys} for record in records], columns=list(keys)),
    )


def _cell(value: Any) -> Cell:
    size = tables.number(value)
    if np.isfinite(size):
        return Cell(_amount(size))
    is_missing = value is None or value is pd.NA or isinstance(value, float)
    return Cell(tables.DASH if is_missing else str(value), number=is_missing)


def _amount(value: Any) -> str:
    """Whole from a thousand on, else four significant digits."""
    size = tables.number(value)
    return tables.plain(size) if abs(size) >= 1000 or not np.isfinite(size) else f"{size:.4g}"


def _value(value: float) -> str:
    """Four decimals: trials differ in little."""
    return f"{value:.4f}" if np.isfinite(value) else tables.DASH


def _at(step: Any) -> str:
    return f"at step {_amount(step)}" if np.isfinite(tables.number(step)) else ""


def _shortened(reason: Any) -> str:
    text = " ".join(reason.split()) if isinstance(reason, str) else ""
    return text if len(text) <= _REASON else f"{text[: _REASON - 1]}…"
