"""What training left on record of a pair: the curve of its stages, their seconds, how many parameters learned."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import safetensors.torch

from rayrec import storage
from rayrec.experiment.pairs import Pair
from rayrec.report.training_curves import progress_rows
from rayrec.training.log import recorded
from rayrec.training.parts import WEIGHTS

STAGE, STEP, LOSS, VALID_AUC, SECONDS = "stage", "step", "loss", "valid_auc", "seconds"


def read_progress(pair: Pair) -> pd.DataFrame:
    """Every step of the stages that the pair needed, in the order of training: stage, step, loss, valid_auc, seconds.

    The pair has copies of their logs, which stay when the store is deleted; what it has no copy of, the store tells.
    Without a row where one is gone from both: a part of the steps is no measure of the whole.
    """
    logs = {
        stage.value: recorded(pair.run.path("stages", stage.value)) or recorded(job.folder)
        for stage, job in pair.jobs.items()
    }
    if not logs or not all(logs.values()):
        return pd.DataFrame(columns=[STAGE, STEP, LOSS, VALID_AUC, SECONDS])
    columns = (STEP, LOSS, VALID_AUC, SECONDS)
    rows: pd.DataFrame = pd.concat([progress_rows(lines, columns).assign(**{STAGE: s}) for s, lines in logs.items()])
    return rows.reset_index(drop=True)


def trained_parameters(pair: Pair) -> int | None:
    """Parameters that one of the pair's stages trained, each counted once; None where a part is gone.

    Parts are looked for where ``read_progress`` looks for logs.
    """
    last = {part: job for job in pair.jobs.values() for part in job.trains}
    total = 0
    for part, job in last.items():
        folders = pair.run.part_folder(job.stage, part), job.part_folder(part)
        files = [storage.join(folder, WEIGHTS) for folder in folders]
        file = next((file for file in files if storage.exists(file)), None)
        if file is None:
            return None
        total += sum(tensor.numel() for tensor in safetensors.torch.load(storage.read_bytes(file)).values())
    return total


def cost(progress: Mapping[int, pd.DataFrame], parameters: int | None) -> dict[str, Any]:
    """Parameters, and each seed's seconds by stage, as plain data; only steps count, not validation or starting."""
    return {
        "parameters": parameters,
        "seconds": {
            str(seed): {str(stage): math.fsum(own[SECONDS].dropna()) for stage, own in rows.groupby(STAGE, sort=False)}
            for seed, rows in sorted(progress.items())
        },
    }
