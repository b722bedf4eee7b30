"""A job that is asked to end: it says so in one line, leaves no process behind, and nobody's failure."""

import sys
from pathlib import Path

import processes
import pytest
import yaml

INTERRUPTED = "interrupted; the same command goes on from the last checkpoint"
WAITING = """
import time
from rayrec.cli import run
from rayrec.config.training import ClusterConfig
from rayrec.training.cluster import connected

def job():
    with connected(ClusterConfig()):
        print("connected", flush=True)
        time.sleep(600)

run(job)
"""


ABORTING = """
import os
from rayrec import ending
from rayrec.cli import run
from rayrec.config.training import ClusterConfig
from rayrec.training.cluster import connected

class Late:
    def __del__(self):
        os.abort()  # as Ray's core was seen to, where an interpreter is taken apart

late = Late()

def job():
    with connected(ClusterConfig()):
        print("connected", end="")

with ending.process():
    run(job)
"""


def assert_ends(job: processes.Running) -> processes.Finished:
    family = job.family()
    job.process.terminate()
    finished = job.wait(90)
    assert finished.code == 130, finished.lines
    assert finished.err.splitlines()[-1] == INTERRUPTED
    assert not processes.outliving(family, 180)  # where Ray is left to itself, its agents take their time
    assert "SIGTERM" not in finished.err  # as Ray's own handler tells it, above a stack
    return finished


def test_sigterm_ends_a_job_as_ctrl_c_does(job_env: dict[str, str], tmp_path: Path) -> None:
    with processes.running([sys.executable, "-c", WAITING], job_env, tmp_path) as job:
        processes.wait_until(lambda: job.ended or "connected" in job.output(), "Ray", timeout=120)
        assert_ends(job)


def test_a_job_that_did_its_work_ends_well(job_env: dict[str, str], tmp_path: Path) -> None:
    finished = processes.run([sys.executable, "-c", ABORTING], job_env, tmp_path).checked()
    assert finished.out == "connected"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_pairs_side_by_side_end_with_their_experiment(job_env: dict[str, str], tmp_path: Path) -> None:
    """No pair is told as failed, and no second Ray starts."""
    tree = {
        "name": "small",
        "base": str(processes.ROOT / "configs" / "smoke.yaml"),
        "set": {
            "cluster.workers": 1,
            "storage": str(tmp_path / "runs"),
            **{f"stages.pretrain_encoder.{name}": 9999 for name in ("epochs", "patience")},
        },
        "seeds": [0, 1, 2],
        "reference": "SASRec",
        "systems": {"Floor": {"system": "bias_floor"}, "SASRec": {"system": "sasrec"}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    command = processes.job("experiment", "--config", str(tmp_path / "small.yaml"))
    with processes.running(command, job_env, tmp_path / "first") as job:
        begun = (tmp_path / "runs" / "store").glob
        processes.wait_until(lambda: job.ended or len([*begun("*/*/progress.jsonl")]) == 2, "two that train")
        assert "failed" not in "".join(assert_ends(job).lines)
