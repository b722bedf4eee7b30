#!/usr/bin/env python3
"""Train one stage alone, from the parts that the run has (or that stages.STAGE.starts_from names).

python jobs/train_stage.py pretrain_encoder
python jobs/train_stage.py tune_hybrid --set stages.tune_hybrid.starts_from.encoder=/parts/x/encoder
"""

from pathlib import Path

from rayrec import cli, ending
from rayrec.config import Config
from rayrec.stages import StageName

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "ml100k_smollm2.yaml"


def act(config: Config, stage: StageName) -> None:
    from rayrec.pipeline import train_only  # noqa: PLC0415  (torch and ray; --help stays quick)

    train_only(config, stage)


if __name__ == "__main__":
    with ending.process():
        cli.main_for_stage(__doc__ or "", DEFAULT, act)
