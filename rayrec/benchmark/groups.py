"""A stage trained whole, with Ray: one worker of all cores against two of half of them, and what it leaves."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from rayrec import storage
from rayrec.benchmark.settings import Benchmark
from rayrec.benchmark.timing import Comparison
from rayrec.config import Config
from rayrec.stages import StageName
from rayrec.store import Prepared, stage_jobs
from rayrec.training import checkpoint
from rayrec.training.cluster import connected
from rayrec.training.job import StageJob
from rayrec.training.launch import run_stages
from rayrec.training.log import recorded

ONE = "one worker of all cores"
_WARM = 2  # steps that do not count: first calls allocate


@dataclass(frozen=True)
class GroupsMeasured:
    """Steps of one worker against two, and facts of the run with one."""

    comparison: Comparison
    facts: dict[str, str]


def measure_groups(benchmark: Benchmark, data: Prepared, scratch: Path) -> GroupsMeasured:
    """Train ``groups_steps`` steps of the LoRA stage with one worker, then the same with two."""
    cores = benchmark.base.cluster.most * benchmark.base.cluster.cpus_per_worker
    rates: dict[int, tuple[float, ...]] = {}
    facts: dict[str, str] = {}
    for workers in (1, 2):
        job = _job(benchmark, data, scratch / str(workers), workers, max(1, cores // workers))
        with connected(job.config.cluster):
            run_stages([job])
        lines = recorded(job.folder)[_WARM:]
        rates[workers] = tuple(job.settings.batch / line["seconds"] for line in lines)
        if workers == 1:
            facts = {
                "input wait, share of a step": f"{statistics.mean(line['wait_share'] for line in lines):.2%}",
                "padding, share of positions": f"{statistics.mean(line['padding'] for line in lines):.2%}",
                **_checkpoint(job, scratch),
            }
    comparison = Comparison(
        name="LoRA stage, two workers", reference=ONE, unit="rows/s", ours=rates[2], theirs=rates[1]
    )
    return GroupsMeasured(comparison, facts)


def _job(benchmark: Benchmark, data: Prepared, folder: Path, workers: int, cpus: int) -> StageJob:
    base = benchmark.base
    cluster = base.cluster.model_copy(update={"workers": workers, "cpus_per_worker": cpus})
    steps = {"epochs": 1, "steps_per_epoch": benchmark.config.groups_steps, "valid_users": 1}
    stages = base.stages.model_copy(update={"tune_lora": base.stages.tune_lora.model_copy(update=steps)})
    config: Config = base.model_copy(update={"cluster": cluster, "stages": stages, "storage": str(folder)})
    return stage_jobs(config, data, storage.join(str(folder), "store"))[StageName.TUNE_LORA]


def _checkpoint(job: StageJob, scratch: Path) -> dict[str, str]:
    """Write the stage's last checkpoint once more, and read it."""
    held = checkpoint.latest(job.folder)
    assert held is not None
    folder = str(scratch / "again")
    began = time.perf_counter()
    checkpoint.save(folder, held.progress, held.state)
    written = time.perf_counter()
    checkpoint.latest(folder)
    read = time.perf_counter()
    size = sum(tensor.nbytes for tensor in held.state.values())
    return {"checkpoint": f"{size:,} bytes, written in {written - began:.3f} s, read in {read - written:.3f} s"}
