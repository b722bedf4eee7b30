#!/usr/bin/env python3
"""Measure the LLM stages, re-ranking, the metrics, an encoder's training and its lists against references, as ratios.

python jobs/benchmark.py
python jobs/benchmark.py --set 'subjects=[hybrid]' --set rounds=5
python jobs/benchmark.py --config configs/benchmark/next_items.yaml
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.benchmark.settings import Benchmark

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "benchmark" / "default.yaml"


def act(benchmark: Benchmark) -> None:
    from rayrec.benchmark.study import run_benchmark  # noqa: PLC0415  (torch and ray; --help stays quick)

    run_benchmark(benchmark)


if __name__ == "__main__":
    with ending.process():
        cli.main_for_benchmark(__doc__ or "", DEFAULT, act)
