"""The tables of an experiment, out of its ``results.json``: cells for the page, a DataFrame for the CSV file."""

from typing import Final

import pandas as pd

from rayrec.report.experiment_cells import (
    Results,
    bold,
    count,
    differences,
    mean_cells,
    mean_record,
    p_value,
    percent,
    sample,
    seeds,
    signed,
    value_of,
)
from rayrec.report.tables import DASH, METRIC_TITLES, SLICE_TITLES, Cell, Table, number

MAIN: Final = ("auc", "uauc", "log_loss", "accuracy", "f1")
_TESTED: Final = ("auc", "uauc")  # beside the main table's means
_BY_SLICE: Final = ("auc", "uauc", "log_loss")
_PARTS: Final = ("warm", "cold", "strict_cold")


def experiment_tables(results: Results) -> list[Table]:
    """All of them, in the order of the page."""
    tables = [_main_table(results), _difference_table(results), _slice_table(results)]
    return [*tables, _fold_table(results)] if "folds" in results else tables


def _main_table(results: Results) -> Table:
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        gain, minus = number(system["relative_improvement"]), system["slices"]["all"]["minus_reference"]
        cells = [Cell(title, series=index, number=False), *mean_cells(results, title, "all", MAIN)]
        cells.append(Cell(DASH if title == results["reference"] else percent(gain)))
        for name in _TESTED:
            cells += [Cell(signed(value_of(minus, name, "value"))), Cell(p_value(value_of(minus, name, "p")))]
        rows.append((*cells, Cell(seeds(system))))
        record = {"title": title, "system": system["system"], **mean_record(system, "all", MAIN)}
        record |= {"relative_improvement": gain}
        for name in _TESTED:
            record |= {
                f"{name}_minus_reference": value_of(minus, name, "value"),
                f"{name}_p": value_of(minus, name, "p"),
            }
        records.append(record | {"seeds": len(system["seeds"]), "failed": len(system["failures"])})
    tested = (text for name in _TESTED for text in (f"Δ {METRIC_TITLES[name]}", "p"))
    return Table(
        name="results",
        caption=f"{_means(results)}; without it: one seed, or nothing to train. "
        f"F1: of the class “like”, at a cutoff of {results['cutoff']:g}. Rel. Imp.: gain of AUC + UAUC over "
        f"“{results['reference']}”. Δ: minus “{results['reference']}”, {_paired(results)}. {bold()} "
        f"{sample(results)}",
        header=("System", *(METRIC_TITLES[name] for name in MAIN), "Rel. Imp.", *tested, "Seeds"),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _difference_table(results: Results) -> Table:
    caption = f"{_paired(results)}, with 95% intervals. For log loss, less is better."
    return differences(results, {name: METRIC_TITLES[name] for name in MAIN}, caption)


def _slice_table(results: Results) -> Table:
    rows, records = [], []
    for part in _PARTS:
        for index, (title, system) in enumerate(results["systems"].items()):
            counts = system["slices"][part]["counts"]
            shown = [count(counts, key) for key in ("rows", "users_with_both_classes")]
            group = Cell("" if index else SLICE_TITLES[part], number=False)
            named = Cell(title, series=index, number=False)
            rows.append((group, named, *mean_cells(results, title, part, _BY_SLICE), *map(Cell, shown)))
            record = {"slice": part, "title": title, "system": system["system"], **counts}
            records.append(record | mean_record(system, part, _BY_SLICE, ("mean", "sd", "low", "high")))
    return Table(
        name="slices",
        caption="Warm: user and item are both well represented in training; cold: the rest; strict cold: neither occurs"
        f" in training. {_means(results)}.{_summed(results)} {bold()} {sample(results)}",
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
            cells += mean_cells(own, title, "all", _BY_SLICE)
            cells += [Cell(signed(value_of(minus, "auc", "value"))), Cell(p_value(value_of(minus, "auc", "p")))]
            cells += [Cell(count(counts, key)) for key in ("rows", "users_with_both_classes")]
            rows.append((*cells, Cell(seeds(system))))
            for part, found in system["slices"].items():
                record = {"fold": fold, "slice": part, "title": title, "system": system["system"], **found["counts"]}
                records.append(record | mean_record(system, part, _BY_SLICE))
    return Table(
        name="folds",
        caption="Each fold alone, in the order of time. Mean ± sample standard deviation over training seeds. Δ: minus "
        f"“{results['reference']}”, with the two-sided p of the same bootstrap. {bold()} {sample(results)}",
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
