"""The report of an experiment on next items: two tables and what they were made with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rayrec.report.experiment_cells import Results, bold, count, differences, mean_cells, mean_record, sample, seeds
from rayrec.report.experiment_page import described_tables, write_text_tables
from rayrec.report.list_page import COMMON, answer_table, shown_metric
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
    """Writes ``folder/index.html`` and ``folder/tables/*.csv``, those of results as ``*.md`` and ``*.tex`` too.

    The same data gives the same bytes.
    """
    made = [_main_table(data.results, "all"), _difference_table(data.results)]
    if COMMON in data.results["best"]:
        made.append(_main_table(data.results, COMMON))
    answers = {title: system.get("answers") for title, system in data.results["systems"].items()}
    if any(answers.values()):
        made.append(answer_table(answers, sample(data.results)))
    tables = {table.name: table for table in (*made, *described_tables(data.results, data.versions))}
    page = write_page(folder, "list_experiment.html.j2", {}, tables, data=data)
    write_text_tables(made, folder)
    return page


def _main_table(results: Results, part: str) -> Table:
    names = results["metrics"]
    counts = {title: system["slices"][part]["counts"] for title, system in results["systems"].items()}
    differ = COMMON in results["best"]
    rows, records = [], []
    for index, (title, system) in enumerate(results["systems"].items()):
        cells = mean_cells(results, title, part, names)
        sessions = [Cell(count(counts[title], "sessions"))] if differ else []
        rows.append((Cell(title, series=index, number=False), *cells, *sessions, Cell(seeds(system))))
        record = {"title": title, "system": system["system"]} | (dict(counts[title]) if differ else {})
        records.append(record | mean_record(system, part, names, ("mean", "sd", "low", "high")))
    which = " Of the sessions that every system was asked for." if part == COMMON else ""
    return Table(
        name="results" if part == "all" else part,
        caption="Mean ± sample standard deviation over training seeds; without it: one seed, or nothing to train. "
        f"{bold()} Coverage is compared with nothing. {sample(results)}{which}",
        header=("System", *map(shown_metric, names), *(["Sessions"] if differ else []), "Seeds"),
        rows=tuple(rows),
        csv=pd.DataFrame(records),
    )


def _difference_table(results: Results) -> Table:
    minus = [system["slices"]["all"]["minus_reference"] for system in results["systems"].values()]
    names = [name for name in results["metrics"] if any(name in own for own in minus)]
    sessions = "the sessions that both were asked for" if COMMON in results["best"] else "sessions"
    how = (
        f"mean over seeds, 95% interval and two-sided p of a paired bootstrap over {sessions}"
        f" ({results['resamples']:,} resamples)."
    )
    return differences(results, {name: shown_metric(name) for name in names}, how)
