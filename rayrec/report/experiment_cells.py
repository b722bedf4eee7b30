"""What the tables of every experiment are made of: cells, records for CSV files, words for captions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from rayrec.report.tables import DASH, Cell, Table, number

_RANGE: Final = ("value", "low", "high", "p")

Results = Mapping[str, Any]  # what ``results.json`` holds


def differences(results: Results, shown: Mapping[str, str], how: str) -> Table:
    """Every system minus the reference in the metrics ``shown``, by name and title; ``how`` says so in the caption."""
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        if title == results["reference"]:
            continue
        minus = system["slices"]["all"]["minus_reference"]
        cells = [Cell(title, series=index, number=False)]
        record: dict[str, Any] = {"title": title, "minus": results["reference"]}
        for name in shown:
            value, low, high, p = (value_of(minus, name, key) for key in _RANGE)
            cells += [Cell(signed(value), interval(low, high)), Cell(p_value(p))]
            record |= {f"{name}_{key}": value_of(minus, name, key) for key in _RANGE}
        rows.append(tuple(cells))
        records.append(record)
    return Table(
        name="differences",
        caption=f"Each system minus “{results['reference']}”, {how} {sample(results)}",
        header=("System", *(text for title in shown.values() for text in (f"Δ {title}", "p"))),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def bold() -> str:
    """What bold means."""
    return "Bold: best, and significantly better than the second (p < 0.05 of the same bootstrap)."


def sample(results: Results) -> str:
    """Which test rows, or sessions, were judged."""
    return f"Sample: {results['sample'].rstrip('.')}."


def mean_cells(results: Results, title: str, part: str, names: Sequence[str]) -> list[Cell]:
    """A system's means and spreads over seeds in a slice; the clear leader's are bold."""
    metrics, best = results["systems"][title]["slices"][part]["metrics"], results["best"][part]
    cells = []
    for name in names:
        mean, spread = (value_of(metrics, name, key) for key in ("mean", "sd"))
        is_best = best[name] is not None and best[name]["title"] == title and best[name]["is_significant"]
        text = fixed(mean) + (f" ± {spread:.4f}" if math.isfinite(spread) else "")
        cells.append(Cell(text, best=is_best))
    return cells


def mean_record(
    system: Mapping[str, Any], part: str, names: Sequence[str], keys: Sequence[str] = ("mean", "sd")
) -> dict[str, float]:
    """The same as numbers, by the names of CSV columns."""
    metrics = system["slices"][part]["metrics"]
    return {name if key == "mean" else f"{name}_{key}": value_of(metrics, name, key) for name in names for key in keys}


def value_of(metrics: Mapping[str, Any], name: str, key: str) -> float:
    """NaN for whatever is missing or null."""
    return number((metrics.get(name) or {}).get(key))


def seeds(system: Mapping[str, Any]) -> str:
    """How many training seeds there are, and of how many."""
    there, lost = len(system["seeds"]), len(system["failures"])
    return f"{there} of {there + lost}" if lost else str(there) if system["is_trained"] else DASH


def count(counts: Mapping[str, int], key: str) -> str:
    """With thousands marked."""
    return f"{counts[key]:,}" if key in counts else DASH


def fixed(value: float) -> str:
    """Four decimals: seeds differ in little."""
    return f"{value:.4f}" if math.isfinite(value) else DASH


def signed(value: float) -> str:
    """Four decimals behind a plus or a minus."""
    return f"{value:+.4f}".replace("-", "−") if math.isfinite(value) else DASH


def interval(low: float, high: float) -> str:
    """Nothing where an end is missing."""
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def p_value(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else DASH


def percent(value: float) -> str:
    """Two decimals behind a sign."""
    return f"{100 * value:+.2f}%".replace("-", "−") if math.isfinite(value) else DASH
