"""A system's scores of the test rows: Ray Data actors hold the model, ``predictions/{system}.parquet`` comes out."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from numpy.typing import NDArray

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.plan import Ids, sample_rows, scoring_batches
from rayrec.data.rows import OpenRows, RowSource
from rayrec.data.store import open_table
from rayrec.errors import InputError
from rayrec.models.baselines.bias import BiasFloor
from rayrec.run import Run
from rayrec.stages import SYSTEMS, Stream, SystemName, SystemSpec, origins
from rayrec.training.evaluate import score_rows
from rayrec.training.launch import is_complete, worker_resources
from rayrec.training.model import ScoringJob, scoring_model
from rayrec.training.parts import part_folder

_SAMPLE_SEED = 0  # the sample of test users is part of the protocol, not of the run: every seed is judged on the same
_CALL_BATCHES = 4  # forward passes of one actor call


def test_sample(run: Run) -> Ids:
    """Row ids of the test rows that every system scores."""
    rows = _rows(run, Stream.INTERACTIONS)
    settings = run.config.evaluation
    return sample_rows(rows.user_ids, settings.users, settings.rows_per_user, _SAMPLE_SEED)


def describe_sample(run: Run) -> str:
    """The same in words, for the caption of every table."""
    ids = test_sample(run)
    rows = _rows(run, Stream.INTERACTIONS)
    users, there = len(np.unique(rows.user_ids[ids])), len(np.unique(rows.user_ids))
    which = "all" if len(ids) == len(rows) else "a fixed, seeded sample:"
    return f"{which} {len(ids):,} of {len(rows):,} test rows, {users:,} of {there:,} users; the same for every system"


def predictions_path(run: Run, system: SystemName) -> str:
    return run.path("predictions", f"{system}.parquet")


def read_predictions(run: Run, system: SystemName) -> pd.DataFrame:
    table = pq.read_table(io.BytesIO(storage.read_bytes(predictions_path(run, system))))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def score_system(run: Run, system: SystemName) -> None:
    """Score the test sample with one system, unless that is done; ray is connected.

    Raises:
        InputError: a stage that the system needs has not run.
    """
    path = predictions_path(run, system)
    if storage.exists(path):
        return
    spec, ids = SYSTEMS[system], test_sample(run)
    scores = _bias_scores(run, ids) if spec.reads is None else _model_scores(run, spec, spec.reads, ids)
    rows = _rows(run, Stream.INTERACTIONS).frame(ids)
    table = rows.append_column(c.SCORE, pa.array(scores, pa.float64())).select(c.PREDICTIONS_SCHEMA.names)
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(c.PREDICTIONS_SCHEMA), sink, compression="zstd")
    storage.write_bytes(path, sink.getvalue().to_pybytes())


def _rows(run: Run, stream: Stream) -> OpenRows:
    return RowSource(run.path("data"), "test", stream, run.facts.max_len).open()


def _bias_scores(run: Run, ids: Ids) -> NDArray[np.float64]:
    floor = BiasFloor()
    for block in open_table(run.path("data", "train.parquet")).to_batches():
        floor.update(*(block[name].to_numpy() for name in (c.USER_ID, c.ITEM_ID, c.LABEL)))
    rows = _rows(run, Stream.INTERACTIONS).frame(ids)
    return floor.predict(rows[c.USER_ID].to_numpy(), rows[c.ITEM_ID].to_numpy())


def _model_scores(run: Run, spec: SystemSpec, stream: Stream, ids: Ids) -> NDArray[np.float64]:
    if spec.after is not None and not is_complete(run.stage_job(spec.after)):
        raise InputError(f"{spec.title}: stage {spec.after} has not run; run jobs/train_stage.py {spec.after} first")
    source = RowSource(run.path("data"), "test", stream, run.facts.max_len)
    order = _Order(source, scoring_batches(ids, source.open().lengths, run.config.evaluation.batch))
    found = origins(spec.after) if spec.after else {}
    job = ScoringJob(
        config=run.config,
        facts=run.facts,
        parts={part: part_folder(run.folder, found[part], part) for part in spec.parts},
        uses_backbone=stream.uses_backbone,
    )
    scored = _scored_by_actors(job, order)
    position = np.argsort(scored[c.ROW].to_numpy())
    scores: NDArray[np.float64] = scored[c.SCORE].to_numpy()[position]
    assert np.array_equal(scored[c.ROW].to_numpy()[position], ids)
    return scores


@dataclass(frozen=True)
class _Order:
    """Rows to score, cut into forward passes beforehand: which actor runs one changes no bit of its scores."""

    source: RowSource
    batches: list[Ids]


def _scored_by_actors(job: ScoringJob, order: _Order) -> pa.Table:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    cluster = job.config.cluster
    resources = worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker)
    actors = min(cluster.workers, len(order.batches))
    calls = -(-len(order.batches) // _CALL_BATCHES)
    numbers = ray.data.range(len(order.batches), override_num_blocks=calls)
    scored = numbers.map_batches(
        _Scorer,
        fn_constructor_args=(job, ray.put(order)),
        batch_size=_CALL_BATCHES,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
    )
    return pa.concat_tables(scored.iter_batches(batch_size=None, batch_format="pyarrow"))


class _Scorer:
    """One actor: a model, and the rows that it is sent."""

    def __init__(self, job: ScoringJob, order: "ray.ObjectRef[_Order]") -> None:
        torch.set_num_threads(job.config.cluster.cpus_per_worker)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = scoring_model(job).to(self.device)
        self.order: _Order = ray.get(order)
        self.rows = self.order.source.open()
        self.soft_tokens = job.config.mapper.tokens

    def __call__(self, numbers: dict[str, Any]) -> dict[str, Any]:
        batches = [self.order.batches[int(number)] for number in numbers["id"]]
        scores = [score_rows(self.model, self.rows, ids, self.soft_tokens, self.device) for ids in batches]
        return {c.ROW: np.concatenate(batches), c.SCORE: np.concatenate(scores)}
