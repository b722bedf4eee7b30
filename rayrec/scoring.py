"""Scores of rows, or lists for them: one pool of Ray Data actors goes through the systems, and each system's file comes
out as soon as its last row is done, so that an interrupted evaluation goes on with the system it was at.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayrec import storage
from rayrec.actors import answers
from rayrec.data import columns as c
from rayrec.data.beside import read_beside
from rayrec.data.catalogue import lists_table, training_counts
from rayrec.data.plan import Ids, sample_rows, scoring_batches
from rayrec.data.rows import OpenRows, RowSource
from rayrec.errors import InputError
from rayrec.floors import floor_scores
from rayrec.rankers import ranked_lists
from rayrec.run import Run
from rayrec.stages import SYSTEMS, Part, StageName, Stream, SystemName, SystemSpec, Task
from rayrec.training.evaluate import Scores, score_rows
from rayrec.training.lists import Lister
from rayrec.training.model import ScoringJob, scoring_model

_SAMPLE_SEED = 0  # the sample of test users is part of the protocol, not of the run: every seed is judged on the same
_CALL_BATCHES = 4  # forward passes of one actor call
_SYSTEM, _BATCHES = "system", "batches"


def test_sample(run: Run) -> Ids:
    """Row ids of the test rows that every system scores."""
    settings = run.config.evaluation
    return sample_rows(_rows(run, "test").user_ids, settings.users, settings.rows_per_user, _SAMPLE_SEED)


def describe_sample(run: Run) -> str:
    """The same in words, for the caption of every table."""
    ids = test_sample(run)
    rows = _rows(run, "test")
    users, there = len(np.unique(rows.user_ids[ids])), len(np.unique(rows.user_ids))
    which = "all" if len(ids) == len(rows) else "a fixed, seeded sample:"
    if run.config.data.task is Task.NEXT_ITEM:
        return f"{which} {users:,} of {there:,} test sessions; the same for every system"
    return f"{which} {len(ids):,} of {len(rows):,} test rows, {users:,} of {there:,} users; the same for every system"


def validation_sample(run: Run, stage: StageName) -> Ids:
    """Row ids of the validation rows that ``stage`` is judged on."""
    settings, seed = run.config.stages[stage], run.config.seed
    return sample_rows(_rows(run, "valid").user_ids, settings.valid_users, settings.valid_rows_per_user, seed)


def predictions_path(run: Run, system: SystemName) -> str:
    """Where a system's predictions lie (PREDICTIONS_SCHEMA; of next items, LISTS_SCHEMA)."""
    return run.path("predictions", f"{system}.parquet")


def read_predictions(run: Run, system: SystemName) -> pd.DataFrame:
    """The scored rows, or the lists, of one system."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(predictions_path(run, system))))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def score_systems(run: Run, systems: Iterable[SystemName]) -> None:
    """Score the test sample with every one of ``systems`` that has no predictions yet; ray is connected.

    Raises:
        InputError: a stage that a system needs has not run.
    """
    open_systems = [system for system in systems if not storage.exists(predictions_path(run, system))]
    ids = test_sample(run)
    alone = [system for system in open_systems if SYSTEMS[system].reads is None]
    for system in alone:
        if run.config.data.task is Task.NEXT_ITEM:
            write_lists(run, predictions_path(run, system), ids, ranked_lists(run, system, ids))
        else:
            write_scores(run, "test", predictions_path(run, system), ids, floor_scores(system, run.data.folder, ids))
    neural = [system for system in open_systems if system not in alone]
    for system, found in _judged(run, neural, "test", ids):
        if run.config.data.task is Task.NEXT_ITEM:
            write_lists(run, predictions_path(run, system), ids, found)
        else:
            write_scores(run, "test", predictions_path(run, system), ids, found[c.SCORE].to_numpy())


def score_split(run: Run, systems: Sequence[SystemName], split: str, ids: Ids) -> Iterator[tuple[SystemName, Scores]]:
    """Each system and its scores of the rows ``ids`` of a split, shape (len(ids),), one system after the other.

    Raises:
        InputError: a stage that a system needs has not run.
    """
    for system, found in _judged(run, systems, split, ids):
        yield system, found[c.SCORE].to_numpy()


def _judged(run: Run, systems: Sequence[SystemName], split: str, ids: Ids) -> Iterator[tuple[SystemName, pa.Table]]:
    """Each system and what it says of the rows ``ids``: SCORE, or RANKED and SCORES."""
    tasks = {system: _task(run, SYSTEMS[system], split) for system in systems}
    if not tasks:
        return
    judged = answers(_calls(run, tasks, ids), _Scorer, (tasks,), run.config.cluster)
    for name, tables in groupby(judged, key=lambda table: table[_SYSTEM][0].as_py()):  # they come in order
        rows = pa.concat_tables(tables).sort_by(c.ROW)
        assert np.array_equal(rows[c.ROW].to_numpy(), ids)
        yield SystemName(name), rows


def _task(run: Run, spec: SystemSpec, split: str) -> "_Task":
    assert spec.reads is not None
    beside = read_beside(run.config, spec.reads)
    source = RowSource(run.data.folder, split, spec.reads, run.facts.max_len, beside)
    return _Task(scoring_job(run, spec), source)


def scoring_job(run: Run, spec: SystemSpec) -> ScoringJob:
    """A neural system with the parts that the run trained for it.

    Raises:
        InputError: the stage that it needs has not run.
    """
    assert spec.reads is not None
    if spec.after is not None and not run.holds(spec.after):
        raise InputError(f"stage {spec.after} has not run; run jobs/train_stage.py {spec.after} first")
    folders: dict[Part, str] = {}
    if spec.after is not None:
        folders = {part: run.part_folder(spec.after, part) for part in run.config.stages.trained(spec.after)}
        if spec.parts - folders.keys():  # what the stage started from
            folders = dict(run.stage_jobs()[spec.after].origins) | folders
    return ScoringJob(
        config=run.config,
        facts=run.facts,
        parts={part: folders[part] for part in spec.parts & folders.keys()},  # a stage may go without one
        uses_backbone=spec.reads.uses_backbone,
    )


def _calls(run: Run, tasks: Mapping[SystemName, "_Task"], ids: Ids) -> list[dict[str, Any]]:
    """The work of every actor call: a system and some forward passes."""
    calls: list[dict[str, Any]] = []
    for system, task in tasks.items():
        batch = run.config.evaluation.rows_at_once(with_backbone=task.job.uses_backbone)
        rows = task.source.open()
        batches = scoring_batches(ids, rows.lengths, batch, rows.shared)
        for i in range(0, len(batches), _CALL_BATCHES):
            calls.append({_SYSTEM: system.value, _BATCHES: [ids.tolist() for ids in batches[i : i + _CALL_BATCHES]]})
    return calls


def write_scores(run: Run, split: str, path: str, ids: Ids, scores: Scores) -> None:
    """Write scored rows of a split (PREDICTIONS_SCHEMA)."""
    table = _rows(run, split).frame(ids).append_column(c.SCORE, pa.array(scores, pa.float64()))
    _write(path, table.select(c.PREDICTIONS_SCHEMA.names).cast(c.PREDICTIONS_SCHEMA))


def write_lists(run: Run, path: str, ids: Ids, lists: pa.Table) -> None:
    """Write lists for test rows (LISTS_SCHEMA)."""
    rows = _rows(run, "test").frame(ids)
    held_out = pa.ListArray.from_arrays(pa.array(np.arange(len(ids) + 1), pa.int32()), rows[c.ITEM_ID].combine_chunks())
    columns = {c.USER_ID: rows[c.USER_ID], c.HELD_OUT: held_out, c.RANKED: lists[c.RANKED], c.SCORES: lists[c.SCORES]}
    _write(path, pa.table(columns).cast(c.LISTS_SCHEMA))


def _write(path: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(path, sink.getvalue().to_pybytes())


def _rows(run: Run, split: str) -> OpenRows:
    return RowSource(run.data.folder, split, Stream.INTERACTIONS, run.facts.max_len).open()


@dataclass(frozen=True)
class _Task:
    """A system and the rows as it reads them. Plain data."""

    job: ScoringJob
    source: RowSource


class _Scorer:
    """One actor: it holds the model of the system that it is sent rows for, one at a time."""

    def __init__(self, tasks: Mapping[SystemName, _Task]) -> None:
        self.tasks = tasks
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.held: SystemName | None = None
        self.judge: Callable[[Ids], pa.Table] | None = None

    def __call__(self, call: pa.Table) -> pa.Table:
        (row,) = call.to_pylist()
        system = SystemName(row[_SYSTEM])
        if system != self.held:
            self.judge = None  # the old model's memory goes before the new one comes
            self.judge, self.held = self._judge(self.tasks[system]), system
        assert self.judge is not None
        batches = [np.asarray(ids) for ids in row[_BATCHES]]
        found = pa.concat_tables([self.judge(ids) for ids in batches])
        marks = {_SYSTEM: pa.array([system.value] * len(found)), c.ROW: pa.array(np.concatenate(batches))}
        return pa.table({**marks, **{name: found[name] for name in found.column_names}})

    def _judge(self, task: _Task) -> Callable[[Ids], pa.Table]:
        """What a forward pass says of its rows."""
        config, rows = task.job.config, task.source.open()
        torch.set_num_threads(config.cluster.cpus_per_worker)
        model = scoring_model(task.job).to(self.device)
        if config.data.task is Task.CLICK:
            return lambda ids: pa.table({c.SCORE: score_rows(model, rows, ids, config, self.device)})
        lister = Lister(model, training_counts(task.source.folder), config, self.device)
        return lambda ids: lists_table(*lister.rank(rows, ids, max(config.evaluation.ks)))
