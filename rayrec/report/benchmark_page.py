"""The report of a benchmark: one table on one page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rayrec.report.page import write_page
from rayrec.report.tables import Cell, Table


@dataclass(frozen=True, kw_only=True)
class BenchmarkReportData:
    """``table``: name, reference, unit, ours, theirs, ratio, its lowest and highest, rounds, shares of matmul peak."""

    table: pd.DataFrame
    machine: Mapping[str, Any]


def write_benchmark_report(data: BenchmarkReportData, folder: Path) -> Path:
    """Writes ``folder/index.html`` and ``folder/tables/*.csv``; returns the page's path."""
    listed = {table.name: table for table in (_ratios(data.table), _machine(data.machine))}
    return write_page(folder, "benchmark.html.j2", {}, listed)


def _ratios(table: pd.DataFrame) -> Table:
    rows = [
        (
            Cell(row["name"], number=False),
            Cell(f"{row['ratio']:.2f}", detail=f"{row['lowest ratio']:.2f} … {row['highest ratio']:.2f}"),
            Cell(f"{row['ours']:,.2f}"),
            Cell(f"{row['theirs']:,.2f}"),
            Cell(row["unit"], number=False),
            Cell(_share(row["our share of matmul peak"]), detail=_share(row["their share of matmul peak"])),
            Cell(row["reference"], number=False),
        )
        for _, row in table.iterrows()
    ]
    return Table(
        name="ratios",
        caption="Medians of interleaved rounds on the same rows; the ratio is the median of the rounds' own ratios.",
        header=("Subject", "Ratio", "Ours", "Theirs", "Unit", "Matmul peak, ours (theirs)", "Against"),
        rows=tuple(rows),
        csv=table,
    )


def _share(value: float) -> str:
    return f"{value:.0%}" if value else "-"


def _machine(machine: Mapping[str, Any]) -> Table:
    return Table(
        name="machine",
        caption="Where and with what it was measured.",
        header=("What", "Value"),
        rows=tuple((Cell(name, number=False), Cell(str(value), number=False)) for name, value in machine.items()),
        csv=pd.DataFrame({"what": list(machine), "value": [str(value) for value in machine.values()]}),
    )
