"""What training left on record of a pair: the curve of its stages, their seconds, how many parameters learned."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from rayrec import storage
from rayrec.experiment.pairs import Pair
from rayrec.report.training_curves import progress_rows
from rayrec.run import Run
from rayrec.stages import StageName
from rayrec.training.log import recorded
from rayrec.training.parts import CARD, read_part

STAGE, STEP, LOSS, VALID_AUC, SECONDS = "stage", "step", "loss", "valid_auc", "seconds"


def read_progress(pair: Pair) -> pd.DataFrame:
    """Every step of the stages that the pair needed, in the order of training: stage, step, loss, valid_auc, seconds.

    Read from the copies of the stages' logs that the pair or its members took, which stay when the store is deleted.
    Without a row where one is gone: a part of the steps is no measure of the whole.
    """
    logs = {stage.value: _first_log(pair, stage) for stage in pair.jobs}
    if not logs or not all(logs.values()):
        nothing: pd.DataFrame = pd.DataFrame(columns=[STAGE, STEP, LOSS, VALID_AUC, SECONDS])
        return nothing
    columns = (STEP, LOSS, VALID_AUC, SECONDS)
    tables = [progress_rows(lines, columns).assign(**{STAGE: s}) for s, lines in logs.items()]
    rows: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return rows


def _first_log(pair: Pair, stage: StageName) -> list[dict[str, Any]]:
    logs = (recorded(run.path("stages", stage.value)) for run in _runs(pair))
    return next((lines for lines in logs if lines), [])


def trained_parameters(pair: Pair) -> int | None:
    """Parameters that one of the pair's stages trained, each counted once; None where a part is gone.

    Raises:
        InputError: a part is cut short.
    """
    last = {part: stage for stage, job in pair.jobs.items() for part in job.trains}
    total = 0
    for part, stage in last.items():
        folders = [run.part_folder(stage, part) for run in _runs(pair)]
        folder = next((folder for folder in folders if storage.exists(storage.join(folder, CARD))), None)
        if folder is None:
            return None
        total += sum(tensor.numel() for tensor in read_part(folder).values())
    return total


def _runs(pair: Pair) -> list[Run]:
    """Those that hold what was trained: an ensemble's are its members'."""
    return [pair.run, *(member.run for member in pair.members)]


def cost(progress: Mapping[int, pd.DataFrame], parameters: int | None) -> dict[str, Any]:
    """Parameters, and each seed's seconds by stage, as plain data; only steps count, not validation or starting."""
    return {
        "parameters": parameters,
        "seconds": {
            str(seed): {str(stage): math.fsum(own[SECONDS].dropna()) for stage, own in rows.groupby(STAGE, sort=False)}
            for seed, rows in sorted(progress.items())
        },
    }
