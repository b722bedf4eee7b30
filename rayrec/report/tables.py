"""The tables of the report: cells for the page, a DataFrame for the CSV file. What is missing is shown as a dash."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from rayrec.metrics import Estimate, paired_difference
from rayrec.stages import Metric

DASH: Final = "–"
METRIC_TITLES: Final[Mapping[str, str]] = {
    "auc": "AUC",
    "uauc": "UAUC",
    "log_loss": "Log loss",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "precision_macro": "Precision, macro",
    "recall_macro": "Recall, macro",
    "f1_macro": "F1, macro",
    "ece": "ECE",
}
SLICE_TITLES: Final[Mapping[str, str]] = {"all": "All", "warm": "Warm", "cold": "Cold", "strict_cold": "Strict cold"}
HEADLINE: Final = ("auc", "uauc", "log_loss", "accuracy", "f1", "f1_macro", "ece")
PRECISION_RECALL: Final = ("precision", "recall", "f1", "precision_macro", "recall_macro", "f1_macro")
LOWER_IS_BETTER: Final = frozenset({"log_loss", "ece"})
COMPARED: Final = ("auc", "uauc", "log_loss")
_RESAMPLES, _SEED = 1000, 0  # of the paired differences, which the page computes itself

SystemMetrics = Mapping[str, Mapping[str, Any]]  # slice -> {"counts", "metrics"}: what `evaluate_slices` returns


class Cell(NamedTuple):
    """One table cell: ``detail`` in small type under ``text``; ``series`` is the index of a system's colour."""

    text: str
    detail: str = ""
    best: bool = False
    series: int | None = None
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page and its CSV twin, ``tables/{name}.csv``."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    csv: pd.DataFrame


def estimate(metrics: Mapping[str, SystemMetrics], system: str, part: str, metric: str) -> Estimate:
    """A metric with its interval; NaN for whatever is missing or null."""
    found = metrics.get(system, {}).get(part, {}).get("metrics", {}).get(metric) or {}
    return Estimate(*(number(found.get(key)) for key in Estimate._fields))


def count(metrics: Mapping[str, SystemMetrics], system: str, part: str, key: str) -> int:
    """A count of a slice; 0 when it is missing."""
    return int(metrics.get(system, {}).get(part, {}).get("counts", {}).get(key) or 0)


def number(value: Any) -> float:
    """``value`` as a float; NaN when it is none, or a bool."""
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else math.nan


def metric_table(
    name: str,
    *,
    metrics: Mapping[str, SystemMetrics],
    titles: Mapping[str, str],
    columns: Sequence[str],
    parts: Sequence[str],
    caption: str,
) -> Table:
    """Systems as rows, grouped by slice when there are several; each metric with its interval; then the counts."""
    rows = []
    for part in parts:
        best = {metric: best_value(metrics, titles, part, metric) for metric in columns}
        for index, (system, title) in enumerate(titles.items()):
            group = [Cell(SLICE_TITLES[part] if not index else "", number=False)] if len(parts) > 1 else []
            cells = [
                estimate_cell(value, best=value.value == best[metric])
                for metric in columns
                for value in [estimate(metrics, system, part, metric)]
            ]
            rows.append((*group, Cell(title, series=index, number=False), *cells, *_count_cells(metrics, system, part)))
    leading = ("Slice", "System") if len(parts) > 1 else ("System",)
    header = (*leading, *(METRIC_TITLES[metric] for metric in columns), "Rows", "Users")
    return Table(
        name=name, caption=caption, header=header, rows=tuple(rows), csv=_long(metrics, titles, columns, parts)
    )


def difference_table(predictions: Mapping[str, pd.DataFrame], titles: Mapping[str, str], caption: str) -> Table:
    """Each system minus the first one, by paired bootstrap over users; a dash where the rows are not the same."""
    reference = next(iter(titles), "")
    rows, records = [], []
    for index, (system, title) in enumerate(titles.items()):
        if system == reference:
            continue
        found = _differences(predictions.get(system), predictions.get(reference))
        cells = [Cell(title, series=index, number=False)]
        record: dict[str, Any] = {"system": system, "minus": reference}
        for name in COMPARED:
            value, low, high, p = found[name]
            cells.append(Cell(signed(value), signed_range(low, high)))
            cells.append(Cell(DASH if math.isnan(p) else f"{p:.3f}"))
            record |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}
        rows.append(tuple(cells))
        records.append(record)
    header = ("System", *(text for name in COMPARED for text in (f"Δ {METRIC_TITLES[name]}", "p")))
    return Table(name="differences", caption=caption, header=header, rows=tuple(rows), csv=pd.DataFrame(records))


def stage_table(
    progress: Mapping[str, Sequence[Mapping[str, Any]]], caption: str, judges: Sequence[Metric] = (Metric.AUC,)
) -> Table:
    """Steps, throughput (medians over the logged steps) and the best values on validation rows of each stage."""
    rows, records = [], []
    for stage, lines in progress.items():
        series = {key: column(lines, key) for key in ("step", "rows_per_s", "tokens_per_s", "wait_share")}
        steps = series["step"].max() if len(series["step"]) else math.nan
        middle = {key: _median(series[key]) for key in ("rows_per_s", "tokens_per_s", "wait_share")}
        told = {judge: column(lines, judge.value) for judge in judges}
        best = {judge: values.max() if len(values) else math.nan for judge, values in told.items()}
        rate = [Cell(plain(middle[key], 3)) for key in ("rows_per_s", "tokens_per_s")]
        wait = middle["wait_share"]
        waited = Cell(DASH if math.isnan(wait) else f"{100 * wait:.1f}%")
        rows.append(
            (Cell(stage, number=False), Cell(plain(steps)), *rate, waited, *(Cell(fixed(best[j])) for j in judges))
        )
        records.append({"stage": stage, "steps": steps, **middle, **{f"best_{j}": best[j] for j in judges}})
    shown = (f"Best valid. {judge.shown}" for judge in judges)
    header = ("Stage", "Steps", "Rows/s", "Tokens/s", "Waiting for data", *shown)
    return Table(name="throughput", caption=caption, header=header, rows=tuple(rows), csv=pd.DataFrame(records))


def records_table(name: str, records: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """One row a record, whatever keys they have."""
    keys = tuple(dict.fromkeys(str(key) for record in records for key in record))
    return Table(
        name=name,
        caption=caption,
        header=tuple(key.replace("_", " ").capitalize() for key in keys),
        rows=tuple(tuple(_value_cell(record.get(key)) for key in keys) for record in records),
        csv=pd.DataFrame([{key: record.get(key) for key in keys} for record in records]),
    )


def pairs_table(name: str, tree: Mapping[str, Any], caption: str) -> Table:
    """Nested plain data as name and value, one row a leaf."""
    leaves = list(_leaves(tree))
    rows = tuple((Cell(key, number=False), Cell(text, number=False)) for key, text in leaves)
    return Table(
        name=name,
        caption=caption,
        header=("Name", "Value"),
        rows=rows,
        csv=pd.DataFrame(leaves, columns=["name", "value"]),
    )


def column(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The finite values of ``key``, in order."""
    values = np.array([number(line.get(key)) for line in lines], dtype=np.float64)
    return values[np.isfinite(values)]


def fixed(value: float) -> str:
    """Three decimals, or a dash."""
    return f"{value:.3f}" if math.isfinite(value) else DASH


def signed(value: float) -> str:
    """Three decimals with a sign, or a dash."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else DASH


def plain(value: float, digits: int = 0) -> str:
    """A count with thousands separators, or a rate with ``digits`` significant digits when it is small."""
    if not math.isfinite(value):
        return DASH
    return f"{value:.{digits}g}" if abs(value) < 10**digits and digits else f"{value:,.0f}"


def _range(low: float, high: float) -> str:
    return f"{fixed(low)} – {fixed(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def signed_range(low: float, high: float) -> str:
    """An interval of a difference, or nothing."""
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def estimate_cell(value: Estimate, *, best: bool) -> Cell:
    """A value with its interval."""
    return Cell(fixed(value.value), _range(value.low, value.high), best=best)


def _count_cells(metrics: Mapping[str, SystemMetrics], system: str, part: str) -> tuple[Cell, Cell]:
    rows, users, both = (count(metrics, system, part, key) for key in ("rows", "users", "users_with_both_classes"))
    return Cell(f"{rows:,}"), Cell(f"{users:,}", f"{both:,} in UAUC")


def best_value(metrics: Mapping[str, SystemMetrics], titles: Mapping[str, str], part: str, metric: str) -> float:
    """The best system's value; NaN where fewer than two have one."""
    values = [estimate(metrics, system, part, metric).value for system in titles]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return math.nan
    return min(finite) if metric in LOWER_IS_BETTER else max(finite)


def _long(
    metrics: Mapping[str, SystemMetrics], titles: Mapping[str, str], columns: Sequence[str], parts: Sequence[str]
) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    for part in parts:
        for system, title in titles.items():
            record: dict[str, Any] = {"slice": part, "system": system, "title": title}
            for key in ("rows", "users", "positives", "users_with_both_classes"):
                record[key] = count(metrics, system, part, key)
            for metric in columns:
                value = estimate(metrics, system, part, metric)
                record |= {metric: value.value, f"{metric}_low": value.low, f"{metric}_high": value.high}
            records.append(record)
    frame: pd.DataFrame = pd.DataFrame(records)
    return frame


def _differences(system: pd.DataFrame | None, reference: pd.DataFrame | None) -> dict[str, tuple[float, ...]]:
    keys = ["user_id", "item_id", "label"]
    if system is None or reference is None or not np.array_equal(system[keys].to_numpy(), reference[keys].to_numpy()):
        return dict.fromkeys(COMPARED, (math.nan,) * 4)
    user, label = system["user_id"].to_numpy(), system["label"].to_numpy()
    score, other = system["score"].to_numpy(), reference["score"].to_numpy()
    return {**paired_difference(user, label, score, other, resamples=_RESAMPLES, seed=_SEED)}


def _median(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, _text(value)))
    return found


def _value_cell(value: Any) -> Cell:
    return Cell(_text(value), number=math.isfinite(number(value)))


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or DASH
    return str(value)
