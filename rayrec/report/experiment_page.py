"""The report of an experiment: one HTML file, its figures as SVG, its tables as CSV, Markdown and LaTeX."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.report.experiment_cells import Results
from rayrec.report.experiment_gallery import Evidence, draw_gallery
from rayrec.report.experiment_tables import experiment_tables
from rayrec.report.page import write_page
from rayrec.report.tables import Table, pairs_table, records_table
from rayrec.report.text_tables import latex_table, markdown_table


@dataclass(frozen=True, kw_only=True)
class ExperimentReportData:
    """All that the page of an experiment shows."""

    title: str
    results: Results  # what ``results.json`` holds
    evidence: Evidence
    config_yaml: str
    versions: Mapping[str, str]  # package -> version
    notes: Sequence[str]  # limits a reader must know


def write_experiment_report(data: ExperimentReportData, folder: Path) -> Path:
    """Writes ``folder/index.html``, ``folder/figures/*.svg`` and ``folder/tables/*.csv``, ``*.md`` and ``*.tex``.

    Returns the page's path. The same data gives the same bytes: no clock, no random ids.
    """
    made = experiment_tables(data.results)
    tables = {table.name: table for table in (*made, *described_tables(data.results, data.versions))}
    page = write_page(
        folder,
        "experiment.html.j2",
        {drawn.name: drawn for drawn in draw_gallery(data.results, data.evidence, tables["slices"].csv)},
        tables,
        data=data,
        failed=bool(_failures(data.results)),
    )
    write_text_tables(made, folder)
    return page


def described_tables(results: Results, versions: Mapping[str, str]) -> list[Table]:
    """What the numbers were made with, and what failed."""
    return [
        records_table("systems", _systems(results), "What each title stands for: system and settings of its own."),
        records_table("failures", _failures(results), "What gave no predictions, and why."),
        pairs_table("versions", versions, "Packages that produced these numbers."),
    ]


def write_text_tables(tables: Iterable[Table], folder: Path) -> None:
    """The tables as Markdown and LaTeX beside their CSV files."""
    for table in tables:
        (folder / "tables" / f"{table.name}.md").write_text(markdown_table(table), encoding="utf-8")
        (folder / "tables" / f"{table.name}.tex").write_text(latex_table(table), encoding="utf-8")


def _systems(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "title": title,
            "system": system["system"],
            "settings": ", ".join([f"{path}: {value}" for path, value in system["set"].items()] + _chosen(system)),
        }
        for title, system in results["systems"].items()
    ]


def _chosen(system: Mapping[str, Any]) -> list[str]:
    """An ensemble's weights and a hybrid's setting, seed by seed."""
    return [
        f"seed {seed}: {' + '.join(f'{weight:.2f} {member}' for member, weight in weights.items())}"
        for seed, weights in system.get("weights", {}).items()
    ] + [
        f"seed {seed}: {', '.join(f'{name} {value:.4g}' for name, value in chosen.items())}"
        for seed, chosen in system.get("chosen", {}).items()
    ]


def _failures(results: Results) -> list[dict[str, Any]]:
    return [
        {"title": title, "seed": seed, "reason": reason}
        for title, system in results["systems"].items()
        for seed, reason in system["failures"].items()
    ]
