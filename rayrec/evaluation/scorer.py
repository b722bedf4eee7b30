"""The actor of a scoring pass. It imports what scores and no more: every actor waits for that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from rayrec.data import columns as c
from rayrec.data.catalogue import lists_table, training_counts
from rayrec.data.plan import Ids
from rayrec.data.rows import RowSource
from rayrec.ranking import Reranker
from rayrec.stages import Task
from rayrec.systems import SystemName
from rayrec.training.evaluate import score_rows, score_rows_twice
from rayrec.training.hardware import the_device
from rayrec.training.lists import Lister
from rayrec.training.model import ScoringJob, scoring_model

ASKED, BATCHES = "asked", "batches"  # columns of a call: systems, and the rows of some forward passes
SYSTEM = "system"  # column of an answer: whose it is


@dataclass(frozen=True)
class ScoringTask:
    """A system and the rows as it reads them. Plain data."""

    job: ScoringJob
    source: RowSource
    finds: ScoringJob | None = None  # the encoder whose candidates the system puts in order


class Scorer:
    """One actor: it holds the model of the systems that it is sent rows for: one, or two that share it."""

    def __init__(self, tasks: Mapping[SystemName, ScoringTask]) -> None:
        self.tasks = tasks
        self.device = the_device()
        self.held: tuple[SystemName, ...] = ()
        self.judge: Callable[[Ids], list[pa.Table]] | None = None

    def __call__(self, call: pa.Table) -> pa.Table:
        (row,) = call.to_pylist()
        systems = tuple(SystemName(name) for name in row[ASKED])
        if systems != self.held:
            self.judge = None  # the old model's memory goes before the new one comes
            self.judge, self.held = self._judges(systems), systems
        assert self.judge is not None
        batches = [np.asarray(ids) for ids in row[BATCHES]]
        found = [pa.concat_tables(tables) for tables in zip(*map(self.judge, batches), strict=True)]
        ids = np.concatenate(batches)
        return pa.concat_tables([_marked(*of_system, ids) for of_system in zip(systems, found, strict=True)])

    def _judges(self, systems: Sequence[SystemName]) -> Callable[[Ids], list[pa.Table]]:
        """What each system's forward pass says of its rows."""
        tasks = [self.tasks[system] for system in systems]
        torch.set_num_threads(tasks[0].job.config.cluster.cpus_per_worker)
        if len(tasks) > 1:
            return self._shared(*tasks)
        judge = self._judge(tasks[0])
        return lambda ids: [judge(ids)]

    def _shared(self, alone: ScoringTask, whole: ScoringTask) -> Callable[[Ids], list[pa.Table]]:
        """Of a language model alone, and of the model that it is a part of."""
        rows = alone.source.open(), whole.source.open()
        model = scoring_model(whole.job).to(self.device)

        def judge(ids: Ids) -> list[pa.Table]:
            found = score_rows_twice(model, rows, ids, whole.job.config, self.device)
            return [pa.table({c.SCORE: scores}) for scores in found]

        return judge

    def _judge(self, task: ScoringTask) -> Callable[[Ids], pa.Table]:
        config, rows = task.job.config, task.source.open()
        if task.finds is not None:
            return self._reranked(task, task.finds)
        model = scoring_model(task.job).to(self.device)
        if config.data.task is Task.CLICK:
            return lambda ids: pa.table({c.SCORE: score_rows(model, rows, ids, config, self.device)})
        lister = Lister(model, training_counts(task.source.folder), config, self.device)
        return lambda ids: lists_table(*lister.rank(rows, ids, max(config.evaluation.ks)))

    def _reranked(self, task: ScoringTask, finds: ScoringJob) -> Callable[[Ids], pa.Table]:
        """Lists of an encoder's candidates."""
        config, rows, folder = task.job.config, task.source.open(), task.source.folder
        assert config.ranking.sasrecllm is not None
        candidates, places = config.ranking.sasrecllm.candidates, max(config.evaluation.ks)
        lister = Lister(scoring_model(finds).to(self.device), training_counts(folder), config, self.device)
        reranker = Reranker(task.job, folder)

        def judge(ids: Ids) -> pa.Table:
            found_BN, _ = lister.rank(rows, ids, candidates)
            return lists_table(*reranker.order(rows.sessions(ids), rows.user_ids[ids], found_BN, places))

        return judge


def _marked(system: SystemName, found: pa.Table, ids: Ids) -> pa.Table:
    marks = {SYSTEM: pa.array([system.value] * len(found)), c.ROW: pa.array(ids)}
    return pa.table({**marks, **{name: found[name] for name in found.column_names}})
