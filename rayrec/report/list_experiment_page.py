"""The report of an experiment on next items: two tables and what they were made with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rayrec.report.experiment_cells import Results, bold, differences, mean_cells, mean_record, sample, seeds
from rayrec.report.experiment_page import described_tables, write_text_tables
from rayrec.report.list_page import shown_metric
from rayrec.report.page import write_page
from rayrec.report.tables import Cell, Table


@dataclass(frozen=True, kw_only=True)
class ListExperimentReportData:
    """All that the page shows."""

    title: str
    results: Results  # what ``results.json`` holds
    config_yaml: str
    versions: Mapping[str, str]  # package -> version
    notes: Sequence[str]


def write_list_experiment_report(data: ListExperimentReportData, folder: Path) -> Path:
    """Writes ``folder/index.html`` and ``folder/tables/*.csv``, the first two as ``*.md`` and ``*.tex`` too.

    The same data gives the same bytes.
    """
    made = [_main_table(data.results), _difference_table(data.results)]
    tables = {table.name: table for table in (*made, *described_tables(data.results, data.versions))}
    page = write_page(folder, "list_experiment.html.j2", {}, tables, data=data)
    write_text_tables(made, folder)
    return page


def _main_table(results: Results) -> Table:
    names = results["metrics"]
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        cells = mean_cells(results, title, "all", names)
        rows.append((Cell(title, series=index, number=False), *cells, Cell(seeds(system))))
        record = {"title": title, "system": system["system"]}
        records.append(record | mean_record(system, "all", names, ("mean", "sd", "low", "high")))
    return Table(
        name="results",
        caption="Mean ± sample standard deviation over training seeds; without it: one seed, or nothing to train. "
        f"{bold()} Coverage is compared with nothing. {sample(results)}",
        header=("System", *map(shown_metric, names), "Seeds"),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _difference_table(results: Results) -> Table:
    names = [name for name in results["metrics"] if results["best"]["all"][name] is not None]
    how = (
        "mean over seeds, 95% interval and two-sided p of a paired bootstrap over sessions"
        f" ({results['resamples']:,} resamples)."
    )
    return differences(results, {name: shown_metric(name) for name in names}, how)
