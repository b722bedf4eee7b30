"""The encoder's training against RecTools' SASRecModel: the same sizes, loss and items of the training split."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv

from rayrec.benchmark import rectools_loop
from rayrec.benchmark.stages import OwnLoop
from rayrec.benchmark.timing import Timed
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.catalogue import training_sessions
from rayrec.data.rows import HISTORY
from rayrec.data.store import open_table
from rayrec.errors import InputError
from rayrec.stages import Loss, StageName, Task

RECTOOLS: Mapping[Loss, tuple[str, str]] = {  # our loss -> theirs, and the reference in words
    Loss.NEXT_ITEM: ("BCE", "RecTools' SASRecModel, BCE with one negative"),
    Loss.SOFTMAX: ("softmax", "RecTools' SASRecModel, its default: softmax over the catalogue"),
}


class OwnEncoderLoop(OwnLoop):
    """The encoder's stage, counted in positions that have a next item."""

    def count(self, table: pa.Table) -> int:
        lengths = pc.list_value_length(table[HISTORY]).to_numpy()
        without = (lengths > 0) & (table[c.LABEL].to_numpy() == 0)  # a target that was not liked is no next item
        return int(lengths.sum() - np.count_nonzero(without))


class RecToolsLoop:
    """Some epochs of RecTools in a process of its own; only their own time counts, not the preparation before."""

    def __init__(self, process: "subprocess.Popen[str]", epochs: int) -> None:
        self.process, self.epochs = process, epochs

    def __call__(self, number: int) -> Timed:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.epochs}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"RecTools ended with exit code {self.process.wait()}; its message is above")
        return Timed(**json.loads(answer))


@contextmanager
def rectools(python: str, base: Config, data: str, loss: Loss, scratch: Path) -> Iterator[RecToolsLoop]:
    """RecTools' model of ``base``'s encoder, ready to train on ``data``.

    Raises:
        InputError: ``python`` does not import RecTools.
    """
    _check(python)
    csv.write_csv(_learned(base.data.task, data), scratch / "liked.csv")
    encoder, stage = base.encoder, base.stages[StageName.PRETRAIN_ENCODER]
    asked = {
        "rows": str(scratch / "liked.csv"),
        "loss": RECTOOLS[loss][0],
        "negatives": 1,
        "threads": torch.get_num_threads(),
        "width": encoder.width,
        "blocks": encoder.blocks,
        "heads": encoder.heads,
        "max_len": encoder.max_len,
        "dropout": encoder.dropout,
        "lr": stage.lr,
        "batch": stage.batch,
    }
    command = [python, "-I", rectools_loop.__file__, json.dumps(asked)]  # -I: its folder's modules are not for import
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch) as process:
        yield RecToolsLoop(process, epochs=1)
        process.stdin.close()  # type: ignore[union-attr]


def _learned(task: Task, data: str) -> pa.Table:
    """What the stage learns from, in the columns that RecTools asks for."""
    names = [c.USER_ID, c.ITEM_ID, "datetime"]
    if task is Task.NEXT_ITEM:
        sessions = training_sessions(data)
        return pa.table([sessions.owners, sessions.items, np.arange(len(sessions.items))], names)
    train = open_table(f"{data}/train.parquet")
    return train.filter(pc.equal(train[c.LABEL], 1)).select([c.USER_ID, c.ITEM_ID, c.TIMESTAMP]).rename_columns(names)


def _check(python: str) -> None:
    try:
        found = subprocess.run(
            [python, "-I", "-c", "import rectools.models"], capture_output=True, text=True, check=False
        )
        reason = found.stderr.strip().splitlines()[-1:] if found.returncode else None
    except OSError as error:
        reason = [str(error)]
    if reason is not None:
        raise InputError(
            f"rectools: {python} does not import it ({' '.join(reason)}); name the Python of an environment made by"
            " `pip install 'rectools[torch]'`, or leave the key out"
        )
