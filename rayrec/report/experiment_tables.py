"""The tables of an experiment, out of its ``results.json``: cells for the page, a DataFrame for the CSV file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from rayrec.report.tables import DASH, METRIC_TITLES, SLICE_TITLES, Cell, Table, number

MAIN: Final = ("auc", "uauc", "log_loss", "accuracy", "f1")
_TESTED: Final = ("auc", "uauc")  # beside the main table's means
_BY_SLICE: Final = ("auc", "uauc", "log_loss")
_PARTS: Final = ("warm", "cold", "strict_cold")
_RANGE: Final = ("value", "low", "high", "p")

Results = Mapping[str, Any]  # what ``results.json`` holds


def experiment_tables(results: Results) -> list[Table]:
    """All of them, in the order of the page."""
    tables = [_main_table(results), _difference_table(results), _slice_table(results)]
    return [*tables, _fold_table(results)] if "folds" in results else tables


def _main_table(results: Results) -> Table:
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        gain, minus = number(system["relative_improvement"]), system["slices"]["all"]["minus_reference"]
        cells = [Cell(title, series=index, number=False), *_mean_cells(results, title, "all", MAIN)]
        cells.append(Cell(DASH if title == results["reference"] else _percent(gain)))
        for name in _TESTED:
            cells += [Cell(_signed(_of(minus, name, "value"))), Cell(_p(_of(minus, name, "p")))]
        rows.append((*cells, Cell(_seeds(system))))
        record = {"title": title, "system": system["system"], **_mean_record(system, "all", MAIN)}
        record |= {"relative_improvement": gain}
        for name in _TESTED:
            record |= {f"{name}_minus_reference": _of(minus, name, "value"), f"{name}_p": _of(minus, name, "p")}
        records.append(record | {"seeds": len(system["seeds"]), "failed": len(system["failures"])})
    tested = (text for name in _TESTED for text in (f"Δ {METRIC_TITLES[name]}", "p"))
    return Table(
        name="results",
        caption=f"{_means(results)}; without it: one seed, or nothing to train. "
        f"F1: of the class “like”, at a cutoff of {results['cutoff']:g}. Rel. Imp.: gain of AUC + UAUC over "
        f"“{results['reference']}”. Δ: minus “{results['reference']}”, {_paired(results)}. {_bold()} "
        f"{_sample(results)}",
        header=("System", *(METRIC_TITLES[name] for name in MAIN), "Rel. Imp.", *tested, "Seeds"),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _difference_table(results: Results) -> Table:
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        if title == results["reference"]:
            continue
        minus = system["slices"]["all"]["minus_reference"]
        cells = [Cell(title, series=index, number=False)]
        record: dict[str, Any] = {"title": title, "minus": results["reference"]}
        for name in MAIN:
            value, low, high, p = (_of(minus, name, key) for key in _RANGE)
            cells += [Cell(_signed(value), _range(low, high)), Cell(_p(p))]
            record |= {f"{name}_{key}": _of(minus, name, key) for key in _RANGE}
        rows.append(tuple(cells))
        records.append(record)
    header = ("System", *(text for name in MAIN for text in (f"Δ {METRIC_TITLES[name]}", "p")))
    return Table(
        name="differences",
        caption=f"Each system minus “{results['reference']}”, {_paired(results)}, with 95% intervals. For log loss, "
        f"less is better. {_sample(results)}",
        header=header,
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _slice_table(results: Results) -> Table:
    rows, records = [], []
    for part in _PARTS:
        for index, (title, system) in enumerate(results["systems"].items()):
            counts = system["slices"][part]["counts"]
            shown = [_count(counts, key) for key in ("rows", "users_with_both_classes")]
            group = Cell("" if index else SLICE_TITLES[part], number=False)
            named = Cell(title, series=index, number=False)
            rows.append((group, named, *_mean_cells(results, title, part, _BY_SLICE), *map(Cell, shown)))
            record = {"slice": part, "title": title, "system": system["system"], **counts}
            records.append(record | _mean_record(system, part, _BY_SLICE, ("mean", "sd", "low", "high")))
    return Table(
        name="slices",
        caption="Warm: user and item are both well represented in training; cold: the rest; strict cold: neither occurs"
        f" in training. {_means(results)}.{_summed(results)} {_bold()} {_sample(results)}",
        header=("Slice", "System", *(METRIC_TITLES[name] for name in _BY_SLICE), "Rows", "Users in UAUC"),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _fold_table(results: Results) -> Table:
    """Each fold's own means, over all its test rows; the CSV file has the slices, too."""
    rows, records = [], []
    for fold, own in results["folds"].items():
        for index, (title, system) in enumerate(own["systems"].items()):
            counts, minus = (system["slices"]["all"][key] for key in ("counts", "minus_reference"))
            cells = [Cell("" if index else fold, number=False), Cell(title, series=index, number=False)]
            cells += _mean_cells(own, title, "all", _BY_SLICE)
            cells += [Cell(_signed(_of(minus, "auc", "value"))), Cell(_p(_of(minus, "auc", "p")))]
            cells += [Cell(_count(counts, key)) for key in ("rows", "users_with_both_classes")]
            rows.append((*cells, Cell(_seeds(system))))
            for part, found in system["slices"].items():
                record = {"fold": fold, "slice": part, "title": title, "system": system["system"], **found["counts"]}
                records.append(record | _mean_record(system, part, _BY_SLICE))
    return Table(
        name="folds",
        caption="Each fold alone, in the order of time. Mean ± sample standard deviation over training seeds. Δ: minus "
        f"“{results['reference']}”, with the two-sided p of the same bootstrap. {_bold()} {_sample(results)}",
        header=(
            *("Fold", "System", *(METRIC_TITLES[name] for name in _BY_SLICE)),
            *(f"Δ {METRIC_TITLES['auc']}", "p", "Rows", "Users in UAUC", "Seeds"),
        ),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _means(results: Results) -> str:
    if "folds" not in results:
        return "Mean ± sample standard deviation over training seeds"
    return f"Mean over {len(results['folds'])} folds ± standard deviation over training seeds, pooled within folds"


def _summed(results: Results) -> str:
    return " Rows and users are summed over folds." if "folds" in results else ""


def _paired(results: Results) -> str:
    over, users = "seeds", "users"
    if "folds" in results:
        over, users = "folds and seeds", "users, each with the rows of all folds"
    return f"mean over {over}, two-sided p of a paired bootstrap over {users} ({results['resamples']:,} resamples)"


def _bold() -> str:
    return "Bold: best, and significantly better than the second (p < 0.05 of the same bootstrap)."


def _sample(results: Results) -> str:
    return f"Sample: {results['sample'].rstrip('.')}."


def _mean_cells(results: Results, title: str, part: str, names: Sequence[str]) -> list[Cell]:
    metrics, best = results["systems"][title]["slices"][part]["metrics"], results["best"][part]
    cells = []
    for name in names:
        mean, spread = (_of(metrics, name, key) for key in ("mean", "sd"))
        is_best = best[name] is not None and best[name]["title"] == title and best[name]["is_significant"]
        text = _fixed(mean) + (f" ± {spread:.4f}" if math.isfinite(spread) else "")
        cells.append(Cell(text, best=is_best))
    return cells


def _mean_record(
    system: Mapping[str, Any], part: str, names: Sequence[str], keys: Sequence[str] = ("mean", "sd")
) -> dict[str, float]:
    metrics = system["slices"][part]["metrics"]
    return {name if key == "mean" else f"{name}_{key}": _of(metrics, name, key) for name in names for key in keys}


def _of(metrics: Mapping[str, Any], name: str, key: str) -> float:
    """NaN for whatever is missing or null."""
    return number((metrics.get(name) or {}).get(key))


def _seeds(system: Mapping[str, Any]) -> str:
    there, lost = len(system["seeds"]), len(system["failures"])
    return f"{there} of {there + lost}" if lost else str(there) if system["is_trained"] else DASH


def _count(counts: Mapping[str, int], key: str) -> str:
    return f"{counts[key]:,}" if key in counts else DASH


def _fixed(value: float) -> str:
    """Four decimals: seeds differ in little."""
    return f"{value:.4f}" if math.isfinite(value) else DASH


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−") if math.isfinite(value) else DASH


def _range(low: float, high: float) -> str:
    return f"{_signed(low)} to {_signed(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def _p(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else DASH


def _percent(value: float) -> str:
    return f"{100 * value:+.2f}%".replace("-", "−") if math.isfinite(value) else DASH
