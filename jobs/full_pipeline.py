#!/usr/bin/env python3
"""Prepare the data, train every stage, score every system, write the report.

python jobs/full_pipeline.py        # MovieLens-100K + SmolLM2-135M, this machine
ray job submit --working-dir . -- python jobs/full_pipeline.py --config configs/smoke.yaml
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.config import Config

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "ml100k_smollm2.yaml"


def act(config: Config) -> None:
    from rayrec.pipeline import full_pipeline  # noqa: PLC0415  (torch and ray; --help stays quick)

    full_pipeline(config)


if __name__ == "__main__":
    with ending.process():
        cli.main(__doc__ or "", DEFAULT, act)
