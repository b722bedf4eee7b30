"""What a finished experiment holds on disk, without any training: prepared rows, predictions, logs, parts."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayrec import storage
from rayrec.data import columns as c
from rayrec.experiment.evidence import gather
from rayrec.experiment.pairs import Pair
from rayrec.training.parts import save_part

STEPS = 12  # of every stage
SECONDS = 0.25  # of every step
PARAMETERS = 3 * 4 + 5  # of every part


NO_EVIDENCE = gather({None: {}}, {}, 0.5)  # for figures that show nothing


def write_rows(folder: str, test: pd.DataFrame, trained: list[int]) -> None:
    """Prepared data. ``test``: what predictions hold but for scores, and ``seen``; ``trained``: the training items."""
    users = int(test[c.USER_ID].max()) + 1
    train = pd.DataFrame({c.ITEM_ID: trained}).assign(user_id=0, label=1, seen=0, is_warm=True, is_strict_cold=False)
    for name, rows in (("train", train), ("test", test)):
        whole = rows.assign(rating=rows[c.LABEL], timestamp=np.arange(len(rows)))[c.ROWS_SCHEMA.names]
        _write(f"{folder}/{name}.parquet", pa.Table.from_pandas(whole, c.ROWS_SCHEMA, preserve_index=False))
    liked: list[list[int]] = [[]] * users
    columns = {c.USER_ID: range(users), c.SOURCE_ID: [str(user) for user in range(users)], c.LIKED: liked}
    _write(f"{folder}/users.parquet", pa.table(columns, c.USERS_SCHEMA))


def finish(pair: Pair, predictions: pd.DataFrame) -> None:
    """As if the pair had run, or each member of it, and been scored."""
    for owner in pair.members or (pair,):
        _train(owner)
    if pair.members:
        storage.write_text(pair.choice, json.dumps({"sasrec": pair.seed / 2, "sasrecllm": 1 - pair.seed / 2}))
    _write(pair.predictions, pa.Table.from_pandas(predictions, c.PREDICTIONS_SCHEMA, preserve_index=False))


def _train(pair: Pair) -> None:
    for stage, job in pair.jobs.items():
        lines = [
            {"step": step, "loss": 0.7 - step / 100, "seconds": SECONDS}
            | ({"valid_auc": 0.6 + step / 100} if step % 4 == 0 else {})
            for step in range(1, STEPS + 1)
        ]
        log = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_text(pair.run.path("stages", stage.value, "progress.jsonl"), log)
        for part in job.trains:
            tensors = {"weight": torch.zeros(3, 4), "bias": torch.zeros(5)}
            save_part(pair.run.part_folder(stage, part), part, tensors, {})


def _write(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue())
