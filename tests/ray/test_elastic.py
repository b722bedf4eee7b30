"""Workers that come and go: a node is lost without warning and another joins, and every row is still trained on once.

Two logical nodes of one CPU each, and a stage that one or two workers can train.
"""

import json
import random
from pathlib import Path
from typing import Any

import heads
import numpy as np
import processes
import pytest

from rayrec.settings import load
from rayrec.store import Prepared, stage_jobs
from rayrec.training.job import StageJob
from rayrec.training.loop import row_mark

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


def test_a_node_lost_and_one_joined(job_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a node's processes at a random step; later a node joins."""
    monkeypatch.chdir(processes.ROOT)
    env = job_env | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20", "RAY_health_check_period_ms": "1000"}
    chance = random.Random(0)
    with heads.started(env, tmp_path / "head", cpus=1) as cluster:
        command = processes.job("train_stage", "pretrain_encoder", *OPTIONS, "--set", f"storage={tmp_path}")
        with cluster.node(tmp_path / "first") as node:
            processes.wait_until(lambda: len(cluster.listed(tmp_path / "nodes", "nodes")) == 2, "two nodes")
            driver = cluster.env | {"RAY_ADDRESS": cluster.address}
            with processes.running(command, driver, tmp_path / "log") as run:
                lost = chance.randrange(5, 15) * STEPS
                processes.wait_until(lambda: run.ended or reached(tmp_path) >= lost, f"step {lost}")
                family = node.family()
                for process in family:
                    process.kill()
                back = reached(tmp_path) + 5 * STEPS
                processes.wait_until(lambda: run.ended or reached(tmp_path) >= back, f"step {back} with one worker")
                with cluster.node(tmp_path / "second"):
                    finished = run.wait().checked()
    log = progress(tmp_path)
    assert [line["step"] for line in log] == list(range(1, EPOCHS * STEPS + 1))
    assert [line["row_mark"] for line in log] == expected_marks(tmp_path)
    worlds = [line["workers"] for line in log]
    assert worlds[0] == 2 and 1 in worlds and worlds[-1] == 2
    assert "goodput" in finished.out
    print(finished.out)
