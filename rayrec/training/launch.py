"""The only TorchTrainer: a stage on a group of workers, restarted from its last checkpoint when one dies."""

import re
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from rayrec import storage
from rayrec.errors import InputError
from rayrec.training.job import StageJob
from rayrec.training.loop import train_worker
from rayrec.training.parts import CARD, part_folder
from rayrec.training.progress import live_line


class StageError(RuntimeError):
    """A stage did not reach its end; the message says why and where to look."""


def is_complete(job: StageJob) -> bool:
    """All parts that the stage trains are there."""
    return all(storage.exists(storage.join(part_folder(job.run, job.stage, p), CARD)) for p in job.trains)


def run_stage(job: StageJob) -> dict[str, Any]:
    """Train one stage to its end and return its summary.

    Raises:
        InputError: the workers found a part or checkpoint that cannot be used.
        StageError: the stage ended before its planned steps, and not by early stopping.
    """
    cluster = job.config.cluster
    with live_line(job.stage.value, job.total_steps) as board:
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # its types say None, but Ray passes on what the loop returns
            train_loop_config={"job": job, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker),
            ),
            run_config=ray.train.RunConfig(
                name=job.stage.value,
                storage_path=storage.join(job.run, "stages"),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        try:
            result: Any = trainer.fit()
            summary: dict[str, Any] | None = result.return_value
        except Exception as error:  # Ray wraps what the workers raised in several ways
            raise StageError(f"stage {job.stage} failed: {_reason(error)}; see {job.folder}") from error
    if summary and summary["error"]:
        raise InputError(summary["error"])
    if not summary or not (summary["progress"]["stopped_early"] or summary["progress"]["step"] >= job.total_steps):
        raise StageError(f"stage {job.stage} ended before its {job.total_steps} steps; see {job.folder}")
    return summary


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
