"""The report of next items: lists of the whole catalogue, judged at several lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from rayrec.metrics import session_differences
from rayrec.metrics.pointwise import FloatArray
from rayrec.report import tables
from rayrec.report.page import Drawn, data_tables, write_page
from rayrec.report.tables import DASH, Cell, SystemMetrics, Table
from rayrec.report.training_curves import training_figure
from rayrec.stages import Metric

METRICS: Final[Mapping[str, str]] = {
    "ndcg": "NDCG",
    "hr": "HR",
    "mrr": "MRR",
    "coverage": "Coverage",
    "serendipity": "Serendipity",
    "novelty": "Novelty",
}
COMMON: Final = "common"  # the slice of sessions that every system was asked for
_COMPARED: Final = ("ndcg", "hr", "mrr")
_RESAMPLES, _SEED = 1000, 0  # of the paired differences, which the page computes itself


@dataclass(frozen=True, kw_only=True)
class ListReportData:
    """All that the page shows."""

    title: str
    config_yaml: str
    versions: Mapping[str, str]  # package -> version
    manifest: Mapping[str, Any]
    metrics: Mapping[str, SystemMetrics]  # system -> slice -> {"counts", "metrics"}, metrics as "ndcg@20"
    values: Mapping[str, Mapping[str, FloatArray]]  # system -> metric -> one number a session, NaN where not asked
    titles: Mapping[
        str, str
    ]  # system -> display title; gives the order, and the first is what others are compared with
    ks: Sequence[int]
    progress: Mapping[str, Sequence[Mapping[str, Any]]]  # stage -> rows of progress.jsonl
    sample: str  # which sessions were ranked for
    notes: Sequence[str]


def write_list_report(data: ListReportData, folder: Path) -> Path:
    """Writes ``folder/index.html``, ``figures/*.png`` and ``tables/*.csv``; returns the page's path.

    The same data gives the same bytes.
    """
    sample = f"Sample: {data.sample.rstrip('.')}."
    first, longest = next(iter(data.titles.values())), max(data.ks)
    small = "Small type: 95% interval, bootstrap over sessions. Bold: best, whether or not intervals overlap."
    if len(_whole(data, "all")) < len(data.titles):
        small += (
            " Who was asked for fewer sessions than others is never bold; the slice Common is of the same sessions."
        )
    made = [
        _list_table("headline", data, [f"{name}@{longest}" for name in METRICS], ("all",), f"{small} {sample}"),
        _list_table(
            "lengths", data, [f"{name}@{k}" for name in _COMPARED for k in data.ks], ("all",), f"{small} {sample}"
        ),
        _difference_table(
            data,
            [f"{name}@{longest}" for name in _COMPARED],
            f"Each system minus {first}, session by session: 95% interval and two-sided p of a paired bootstrap over"
            f" sessions. {sample}",
        ),
        _list_table(
            "slices",
            data,
            [f"{name}@{longest}" for name in ("ndcg", "hr", "mrr", "coverage")],
            [part for part in next(iter(data.metrics.values())) if part != "all"],
            "Warm: the target is well represented in training; cold: the rest. History: items before the target."
            f" Popularity: the target's events in training. Bins hold about as many sessions each. {small} {sample}",
        ),
        tables.stage_table(data.progress, f"Medians over the logged steps of each stage. {sample}", _judges(data)),
        *data_tables(data.manifest, sample),
        tables.pairs_table("versions", data.versions, f"Packages that produced these numbers. {sample}"),
    ]
    answers = {data.titles[system]: slices["all"].get("answers") for system, slices in data.metrics.items()}
    if any(answers.values()):
        made.append(answer_table(answers, sample))
    curves = Drawn(
        name="training",
        figure=training_figure(data.progress, (Metric.NDCG, Metric.HR)),
        caption="Training loss (thin: as logged, thick: smoothed), and what the validation sessions' lists are worth.",
    )
    return write_page(
        folder,
        "list_page.html.j2",
        {curves.name: curves},
        {table.name: table for table in made},
        data=data,
        first=first,
    )


def answer_table(answers: Mapping[str, Mapping[str, float] | None], sample: str) -> Table:
    """Of every title that answers in words, how many names it said and the shares that were mapped."""
    told = {title: shares for title, shares in answers.items() if shares is not None}
    shown = ("unknown", "barred", "mapped")
    rows = tuple(
        (
            Cell(title, number=False),
            Cell(tables.plain(shares["names"])),
            *(Cell(tables.fixed(tables.number(shares[key]))) for key in shown),
        )
        for title, shares in told.items()
    )
    return Table(
        name="answers",
        caption="Every answer is an item. In the place of a name that no item has (unknown), or of an item that was"
        " named before, is in the session or was not offered (barred), stands the item left whose name is most like it."
        f" Mapped: both together. {sample}",
        header=("System", "Names said", *(key.capitalize() for key in shown)),
        rows=rows,
        csv=pd.DataFrame([{"title": title, **shares} for title, shares in told.items()]),
    )


def _whole(data: ListReportData, part: str) -> list[str]:
    """The systems that were asked for all sessions of a slice."""
    counts = {system: tables.count(data.metrics, system, part, "sessions") for system in data.titles}
    return [system for system, count in counts.items() if count == max(counts.values())]


def _judges(data: ListReportData) -> list[Metric]:
    """What the stages were judged by."""
    told = {key for lines in data.progress.values() for line in lines for key in line}
    return [Metric.NDCG, *(metric for metric in (Metric.AUC, Metric.ANSWERS) if metric.value in told)]


def shown_metric(metric: str) -> str:
    """``ndcg@20`` as tables show it."""
    name, _, k = metric.partition("@")
    return f"{METRICS[name]}@{k}"


def _list_table(name: str, data: ListReportData, columns: Sequence[str], parts: Sequence[str], caption: str) -> Table:
    """Systems as rows, grouped by slice when there are several; each metric with its interval; then the counts."""
    rows, records = [], []
    for part in parts:
        whole = {system: data.titles[system] for system in _whole(data, part)}
        best = {metric: tables.best_value(data.metrics, whole, part, metric) for metric in columns}
        for index, (system, title) in enumerate(data.titles.items()):
            found = {metric: tables.estimate(data.metrics, system, part, metric) for metric in columns}
            sessions, items = (tables.count(data.metrics, system, part, key) for key in ("sessions", "items"))
            group = [Cell(part.capitalize() if not index else "", number=False)] if len(parts) > 1 else []
            cells = [
                tables.estimate_cell(value, best=system in whole and value.value == best[metric])
                for metric, value in found.items()
            ]
            counts = Cell(f"{sessions:,}", f"{items:,} targets")
            rows.append((*group, Cell(title, series=index, number=False), *cells, counts))
            record: dict[str, Any] = {"slice": part, "system": system, "title": title, "sessions": sessions}
            for metric, value in found.items():
                record |= {metric: value.value, f"{metric}_low": value.low, f"{metric}_high": value.high}
            records.append(record | {"items": items})
    leading = ("Slice", "System") if len(parts) > 1 else ("System",)
    header = (*leading, *map(shown_metric, columns), "Sessions")
    return Table(name=name, caption=caption, header=header, rows=tuple(rows), csv=pd.DataFrame(records))


def _difference_table(data: ListReportData, columns: Sequence[str], caption: str) -> Table:
    """Each system minus the first one, in the sessions that both were asked for."""
    reference, *others = data.titles
    rows, records = [], []
    for index, system in enumerate(others, 1):
        both = np.isfinite(data.values[system][columns[0]] + data.values[reference][columns[0]])
        own, other = ({metric: data.values[name][metric][both] for metric in columns} for name in (system, reference))
        cells = [Cell(data.titles[system], series=index, number=False)]
        record: dict[str, Any] = {"system": system, "minus": reference}
        for metric, found in session_differences(own, other, resamples=_RESAMPLES, seed=_SEED).items():
            cells.append(Cell(tables.signed(found.value), tables.signed_range(found.low, found.high)))
            cells.append(Cell(DASH if math.isnan(found.p) else f"{found.p:.3f}"))
            record |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
            record[f"{metric}_p"] = found.p
        rows.append(tuple(cells))
        records.append(record)
    header = ("System", *(text for metric in columns for text in (f"Δ {shown_metric(metric)}", "p")))
    return Table(name="differences", caption=caption, header=header, rows=tuple(rows), csv=pd.DataFrame(records))
