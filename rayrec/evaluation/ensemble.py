"""Systems that pool others: weights chosen on validation rows, then one score for each test row."""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.plan import Ids
from rayrec.evaluation.predictions import choice_path, predictions_path, read_predictions, write_scores
from rayrec.evaluation.sample import test_sample, validation_sample
from rayrec.evaluation.scoring import score_split
from rayrec.floors import auc_and_uauc
from rayrec.models.ensemble import choose_weights, pool
from rayrec.run import Run
from rayrec.stages import STAGES, StageName
from rayrec.systems import SYSTEMS, SystemName


def score_ensemble(run: Run, system: SystemName, members: Mapping[SystemName, Run]) -> None:
    """Write the weights and the predictions of an ensemble whose members have theirs; ray is connected.

    The validation rows are those that the members' last stage is judged on. Their scores by each member stay in the
    run's ``validation/``, as the test rows' in its ``predictions/``. The weights are told by member.

    Raises:
        InputError: a member's stage has not run.
    """
    names = SYSTEMS[system].members
    ids = validation_sample(run, _last_stage(names))
    valid = [_validation_scores(run, name, members[name], ids) for name in names]
    users, labels = (valid[0][column].to_numpy() for column in (c.USER_ID, c.LABEL))
    weights = choose_weights(users, labels, _side_by_side(valid), auc_and_uauc)
    told = {name.value: weight for name, weight in zip(names, weights, strict=True)}
    storage.write_text(choice_path(run, system), json.dumps(told, indent=2) + "\n")
    tested = [read_predictions(members[name], name) for name in names]
    write_scores(run, "test", predictions_path(run, system), test_sample(run), pool(_side_by_side(tested), weights))


def _last_stage(systems: Sequence[SystemName]) -> StageName:
    """The last stage that leaves one of the systems."""
    left = {SYSTEMS[system].after for system in systems}
    return [stage for stage in STAGES if stage in left][-1]


def _validation_scores(run: Run, name: SystemName, member: Run, ids: Ids) -> pd.DataFrame:
    path = run.path("validation", f"{name}.parquet")
    if not storage.exists(path):
        ((_, scores),) = score_split(member, [name], "valid", ids)
        write_scores(run, "valid", path, ids, scores)
    return pd.read_parquet(io.BytesIO(storage.read_bytes(path)))


def _side_by_side(frames: list[pd.DataFrame]) -> NDArray[np.float64]:
    """The members' scores of the same rows, shape (rows, members)."""
    keys = [c.USER_ID, c.ITEM_ID]
    assert all(frame[keys].equals(frames[0][keys]) for frame in frames)
    return np.column_stack([frame[c.SCORE] for frame in frames])
