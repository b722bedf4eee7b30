#!/usr/bin/env python3
"""Train and score several systems over several seeds on the same rows; write tables for a paper.

python jobs/experiment.py           # MovieLens-100K, this machine
python jobs/experiment.py --config configs/experiments/ml100k.yaml --set 'seeds=[0, 1, 2]' --plan
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.experiment.settings import Experiment

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "experiments" / "ml100k.yaml"


def act(experiment: Experiment) -> None:
    from rayrec.experiment.study import run_experiment  # noqa: PLC0415  (torch and ray; --help stays quick)

    run_experiment(experiment)


if __name__ == "__main__":
    with ending.process():
        cli.main_for_experiment(__doc__ or "", DEFAULT, act)
