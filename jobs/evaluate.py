#!/usr/bin/env python3
"""Score the test rows with every system of a trained run; write metrics.json and the report.

python jobs/evaluate.py --config configs/ml1m_tinyllama_t4.yaml
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.config import Config

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "ml100k_smollm2.yaml"


def act(config: Config) -> None:
    from rayrec.pipeline import evaluate_only  # noqa: PLC0415  (torch and ray; --help stays quick)

    evaluate_only(config)


if __name__ == "__main__":
    with ending.process():
        cli.main(__doc__ or "", DEFAULT, act)
