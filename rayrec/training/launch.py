"""The only TorchTrainer: stages on one group of workers, restarted from their last checkpoint when one dies."""

import re
import time
from collections.abc import Sequence
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from rayrec.config.training import WorkerRange
from rayrec.errors import DivergedError, InputError
from rayrec.training.job import StageJob
from rayrec.training.log import recorded
from rayrec.training.loop import train_worker
from rayrec.training.parts import is_complete
from rayrec.training.progress import live_lines
from rayrec.training.trackers import train_callbacks


class StageError(RuntimeError):
    """A stage did not reach its end; the message says why and where to look."""


def run_stages(jobs: Sequence[StageJob], *, label: str = "") -> None:
    """Train stages of one configuration, in order, to their ends, and show how it goes; raises as ``train_stages``.

    ``label`` begins the lines of a training that is not alone.
    """
    before, began = _useful_seconds(jobs), time.monotonic()
    with live_lines(label) as board:
        train_stages(jobs, board, train_callbacks(jobs[0].config, board))
    useful, spent = _useful_seconds(jobs) - before, time.monotonic() - began
    print(f"{label}goodput  {useful / spent:.0%}: {useful:.0f} of {spent:.0f} s went into steps that count", flush=True)


def train_stages(jobs: Sequence[StageJob], board: Any, callbacks: Sequence[ray.train.UserCallback] = ()) -> None:
    """The same, telling ``board`` (an actor like ``Board``) and ``callbacks`` alone.

    Raises:
        InputError: the workers found a part or checkpoint that cannot be used.
        DivergedError: the loss is no number any more.
        StageError: a stage ended before its planned steps, and not by early stopping.
    """
    cluster = jobs[0].config.cluster
    workers = cluster.workers
    scaling: Any = ray.train.ScalingConfig  # its types are the older version's, which knows no range
    size = {"num_workers": workers} if isinstance(workers, int) else _range(workers)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its types say None, but Ray passes on what the loop returns
        train_loop_config={"jobs": list(jobs), "board": board},
        scaling_config=scaling(
            **size,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker),
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=jobs[0].folder,
            failure_config=ray.train.FailureConfig(max_failures=max(-1, cluster.max_failures * len(jobs))),
            callbacks=list(callbacks),  # type: ignore[arg-type]  # its types name Tune's, but Train takes its own alone
        ),
    )
    try:
        result: Any = trainer.fit()
        summary: dict[str, Any] | None = result.return_value
    except Exception as error:  # Ray wraps what the workers raised in several ways
        job = next((job for job in jobs if not is_complete(job)), jobs[-1])
        raise StageError(f"stage {job.stage} failed: {_reason(error)}; see {job.folder}") from error
    if summary and summary["error"]:
        raise (DivergedError if summary["diverged"] else InputError)(summary["error"])
    for job in jobs:
        if not summary or job.stage not in summary["finished"]:
            raise StageError(f"stage {job.stage} ended before its {job.total_steps} steps; see {job.folder}")


def _range(workers: WorkerRange) -> dict[str, Any]:
    return {"num_workers": (workers.min, workers.max), "elastic_resize_monitor_interval_s": workers.look_every}


def _useful_seconds(jobs: Sequence[StageJob]) -> float:
    """Spent on the optimizer steps on record: not on starts, validation, checkpoints or steps done twice."""
    return float(sum(line["seconds"] for job in jobs for line in recorded(job.folder)))


def worker_resources(cpus: int, gpus: int) -> dict[str, float]:
    """Ray resources of one worker."""
    return {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})


def _reason(error: BaseException) -> str:
    """The innermost message of an exception chain, on one line: Ray's are whole tracebacks, some with advice behind."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
