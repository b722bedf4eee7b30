#!/usr/bin/env python3
"""Search settings with Ray Tune: encoder, LoRA, mapper, prompt or all together.

python jobs/search.py               # the encoder on MovieLens-100K, 12 trials, this machine
python jobs/search.py --config configs/search/lora.yaml --set budget.trials=20
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.search.config import Search

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "search" / "encoder.yaml"


def act(search: Search) -> None:
    from rayrec.search.study import run_search  # noqa: PLC0415  (torch and ray; --help stays quick)

    run_search(search)


if __name__ == "__main__":
    with ending.process():
        cli.main_for_search(__doc__ or "", DEFAULT, act)
