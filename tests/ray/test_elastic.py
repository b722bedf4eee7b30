"""Workers that come and go: nodes are lost, leave with notice and join, and every row is still trained on once.

Two logical nodes of one CPU each, and a stage that one or two workers can train.
"""

import json
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import heads
import numpy as np
import processes
import pytest
from heads import Cluster
from processes import Running

from rayrec.data.plan import row_mark
from rayrec.settings import load
from rayrec.store import Prepared, stage_jobs
from rayrec.training.job import StageJob

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
EPOCHS, STEPS = 60, 20
OPTIONS = [
    *("--config", "configs/smoke.yaml"),
    *("--set", "cluster.workers={min: 1, max: 2, look_every: 5}"),
    *("--set", f"stages.pretrain_encoder.epochs={EPOCHS}"),
    *("--set", f"stages.pretrain_encoder.steps_per_epoch={STEPS}"),
    *("--set", "stages.pretrain_encoder.patience=1000"),
]
SETTINGS = OPTIONS[3::2]


def progress(storage: Path) -> list[dict[str, Any]]:
    (path,) = (storage / "store" / "pretrain_encoder").glob("*/progress.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def reached(storage: Path) -> int:
    names = (storage / "store" / "pretrain_encoder").glob("*/checkpoints/step-????????")
    return max((int(path.name.removeprefix("step-")) for path in names), default=0)


def expected_marks(storage: Path) -> list[int]:
    """Of the rows that the plan names, which knows nothing of workers."""
    config = load(Path("configs/smoke.yaml"), [*SETTINGS, f"storage={storage}"])
    jobs = stage_jobs(config, Prepared(str(storage / "smoke" / "data")), str(storage / "store"))
    job: StageJob = next(iter(jobs.values()))
    plan = job.order(0, 1).plan()
    return [row_mark(np.asarray(plan.step(step))) for step in range(job.total_steps)]


@pytest.fixture
def cluster(job_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A node of one CPU, and the command's environment."""
    monkeypatch.chdir(processes.ROOT)
    env = job_env | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20", "RAY_health_check_period_ms": "1000"}
    with heads.started(env, tmp_path / "head", cpus=1) as cluster:
        yield cluster


def training(cluster: Cluster, storage: Path, *options: str) -> AbstractContextManager[Running]:
    command = processes.job("train_stage", "pretrain_encoder", *OPTIONS, "--set", f"storage={storage}", *options)
    return processes.running(command, cluster.env | {"RAY_ADDRESS": cluster.address}, storage / "log")


def assert_every_row_once(storage: Path) -> list[int]:
    """Workers of each step."""
    log = progress(storage)
    assert [line["step"] for line in log] == list(range(1, EPOCHS * STEPS + 1))
    assert [line["row_mark"] for line in log] == expected_marks(storage)
    return [line["workers"] for line in log]


def await_nodes(cluster: Cluster, storage: Path, count: int) -> list[dict[str, Any]]:
    processes.wait_until(lambda: len(cluster.listed(storage / "nodes", "nodes")) == count, f"{count} nodes")
    return cluster.listed(storage / "nodes", "nodes")


def test_a_node_lost_and_one_joined(cluster: Cluster, tmp_path: Path) -> None:
    """kill -9 of a node's processes at a random step; later a node joins."""
    with cluster.node(tmp_path / "first") as node:
        await_nodes(cluster, tmp_path, 2)
        with training(cluster, tmp_path) as run:
            lost = random.Random(0).randrange(5, 15) * STEPS
            processes.wait_until(lambda: run.ended or reached(tmp_path) >= lost, f"step {lost}")
            for process in node.family():
                process.kill()
            back = reached(tmp_path) + 5 * STEPS
            processes.wait_until(lambda: run.ended or reached(tmp_path) >= back, f"step {back} with one worker")
            with cluster.node(tmp_path / "second"):
                finished = run.wait().checked()
    workers = assert_every_row_once(tmp_path)
    assert workers[0] == 2 and 1 in workers and workers[-1] == 2
    assert "goodput" in finished.out


def test_a_node_that_gives_notice(cluster: Cluster, tmp_path: Path) -> None:
    """A checkpoint is taken at once, where none was due before the end, and one worker goes on from there."""
    with cluster.node(tmp_path / "first") as node:
        (leaving,) = (node for node in await_nodes(cluster, tmp_path, 2) if not node["is_head_node"])
        with training(cluster, tmp_path, "--set", "stages.pretrain_encoder.checkpoint_every=1000") as run:
            processes.wait_until(lambda: run.ended or "step 3" in run.output(), "a quarter of the steps")
            assert reached(tmp_path) == 0
            cluster.drain(leaving["node_id"], tmp_path / "drain", seconds=20)
            processes.wait_until(lambda: run.ended or reached(tmp_path) > 0, "a checkpoint")
            saved = reached(tmp_path)
            for process in node.family():
                process.kill()
            run.wait().checked()
    workers = assert_every_row_once(tmp_path)
    assert 0 < saved < EPOCHS * STEPS
    assert set(workers[:saved]) == {2} and workers[-1] == 1
