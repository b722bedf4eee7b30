"""A benchmark from its file to its table: JSON, CSV and one HTML page."""

import io
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rayrec import __version__, storage
from rayrec.benchmark.comparisons import compare_subject
from rayrec.benchmark.groups import measure_groups
from rayrec.benchmark.isolated import from_own_process
from rayrec.benchmark.settings import Benchmark, Subject
from rayrec.benchmark.stages import matmul_peak
from rayrec.benchmark.timing import Comparison
from rayrec.binding import package_versions
from rayrec.config.training import Precision
from rayrec.data.beside import read_beside
from rayrec.models.sasrecllm import DTYPES
from rayrec.preparation import prepare_beside, prepare_rows
from rayrec.report import BenchmarkReportData, write_benchmark_report
from rayrec.stages import STAGES
from rayrec.store import Prepared
from rayrec.training.cluster import connected


def run_benchmark(benchmark: Benchmark) -> None:
    """Prepare the data, measure every subject, write and print the table."""
    base = benchmark.base
    folder = storage.join(storage.absolute(base.storage), benchmark.config.name)
    print(f"rayrec {__version__}  {benchmark.config.name}  ->  {folder}", flush=True)
    storage.check_writable(folder)
    data = Prepared(storage.join(folder, "data"))
    with connected(base.cluster):
        prepare_rows(base, data)
        prepare_beside(base, data, read_beside(base, *(STAGES[stage].reads for stage in base.run_stages)))
    found: list[Comparison] = []
    facts: dict[str, str] = {}
    if Subject.GROUPS in benchmark.config.subjects:
        with tempfile.TemporaryDirectory() as scratch:
            groups = measure_groups(benchmark, data, Path(scratch))
        facts = groups.facts
        print(_line(groups.comparison), flush=True)
        found.append(groups.comparison)
    for subject in benchmark.config.subjects:
        if subject is not Subject.GROUPS:
            for comparison in from_own_process(compare_subject, benchmark, data, subject):
                print(_line(comparison), flush=True)
                found.append(comparison)
    torch.set_num_threads(base.cluster.most * base.cluster.cpus_per_worker)
    _write(found, facts, base.engine.precision, folder)


def _line(comparison: Comparison) -> str:
    low, high = min(comparison.ratios), max(comparison.ratios)
    ours, theirs = statistics.median(comparison.ours), statistics.median(comparison.theirs)
    return (
        f"{comparison.name}: {comparison.ratio:.2f}x [{low:.2f}, {high:.2f}]"
        f"  {ours:,.2f} against {theirs:,.2f} {comparison.unit}  ({comparison.reference})"
    )


def _write(found: Sequence[Comparison], facts: Mapping[str, str], precision: Precision, folder: str) -> None:
    peak = {dtype: matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    machine: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **{f"matmul GFLOP/s, {name}": round(peak[DTYPES[name]] / 1e9, 1) for name in ("fp32", "bf16")},
        "precision": precision,
        **facts,
        **package_versions(),
    }
    best = peak[DTYPES[precision]]
    table = pd.DataFrame(
        {
            "name": comparison.name,
            "reference": comparison.reference,
            "unit": comparison.unit,
            "ours": statistics.median(comparison.ours),
            "theirs": statistics.median(comparison.theirs),
            "ratio": comparison.ratio,
            "lowest ratio": min(comparison.ratios),
            "highest ratio": max(comparison.ratios),
            "rounds": len(comparison.ratios),
            "our share of matmul peak": statistics.median(comparison.ours) * comparison.our_flop / best,
            "their share of matmul peak": statistics.median(comparison.theirs) * comparison.their_flop / best,
        }
        for comparison in found
    )
    content = {"machine": machine, "comparisons": table.to_dict("records")}
    storage.write_text(storage.join(folder, "benchmark.json"), json.dumps(content, indent=2) + "\n")
    sink = io.StringIO()
    table.to_csv(sink, index=False, lineterminator="\n")
    storage.write_text(storage.join(folder, "benchmark.csv"), sink.getvalue())
    with tempfile.TemporaryDirectory() as scratch:
        write_benchmark_report(BenchmarkReportData(table=table, machine=machine), Path(scratch))
        storage.upload(Path(scratch), storage.join(folder, "report"))
    print(f"report  {storage.join(folder, 'report', 'index.html')}")
