"""kill -9 of a worker or of the driver, in every stage: the finished run's bytes are those of an uninterrupted one.

Moments are random but seeded, and printed. A kill that came too late for its stage is seen, and the run done again.
"""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import processes
import psutil
import pytest
from conftest import EPOCHS, SMOKE, Pipeline
from processes import Running

from rayrec.stages import STAGES, SYSTEMS, StageName

pytestmark = pytest.mark.timeout(1800)
ATTEMPTS = 3
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 3))]


class TooLateError(Exception):
    """The stage was over before the kill."""


class Moments:
    """When to kill: after how many of each stage's checkpoints, and how long after the last of them."""

    def __init__(self, folder: Path, seed: int, attempt: int) -> None:
        self._folder, self._random = folder, random.Random(f"{seed} {attempt}")

    def await_next(self, stage: StageName, started: Running) -> None:
        """Return when the stage's moment has come."""
        epochs = self._random.randint(0, EPOCHS[stage] // 2)
        delay = self._random.uniform(0, 1)
        step = epochs * (10 if stage is StageName.PRETRAIN_ENCODER else 5)  # smoke.yaml's steps of an epoch
        print(f"kill in {stage}: {delay:.2f} s after step {step}")
        processes.wait_until(
            lambda: started.ended or (bool(started.workers()) and self.step(stage) >= step and self._is_next(stage)),
            f"step {step} of {stage}",
        )
        time.sleep(delay)
        self.check(stage, started)

    def check(self, stage: StageName, started: Running) -> None:
        """Raises ``TooLateError`` where the stage has handed on its parts."""
        assert not started.ended, started.output()
        if (self._folder / "parts" / stage).exists():
            raise TooLateError(f"{stage} was over before the kill")

    def step(self, stage: StageName) -> int:
        """Step of the newest checkpoint."""
        names = [path.name for path in (self._folder / "stages" / stage / "checkpoints").glob("step-????????")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def _is_next(self, stage: StageName) -> bool:
        """The stages before it are over, so that the workers seen are this stage's."""
        order = list(STAGES)
        return (self._folder / "stages" / stage).exists() and all(
            (self._folder / "parts" / before).exists() for before in order[: order.index(stage)]
        )

    def pick(self, workers: list[psutil.Process]) -> psutil.Process:
        return self._random.choice(workers)


Interrupted = Callable[[list[str], Pipeline, Moments, Path], None]


def kill_workers(command: list[str], whole: Pipeline, moments: Moments, log: Path) -> None:
    """One worker in each stage; Ray Train starts the group again."""
    with processes.running(command, whole.env, log) as started:
        for stage in STAGES:
            moments.await_next(stage, started)
            victim = moments.pick(started.workers())
            victim.kill()
            victim.wait(30)
            moments.check(stage, started)
        started.wait().checked()


def kill_drivers(command: list[str], whole: Pipeline, moments: Moments, log: Path) -> None:
    """The driver in each stage; the same command goes on."""
    for stage in STAGES:
        with processes.running(command, whole.env, log / stage) as started:
            moments.await_next(stage, started)
            family = started.family()
            # Two agents of a node, of no use without it, wait a minute for their dead cluster before they give up.
            agents = [process for process in family if processes.title(process).endswith("Agent")]
            reached = moments.step(stage)
            started.kill()
            left = processes.outliving([process for process in family if process not in agents], 60)
            processes.end_all(family, grace=0)
            assert left == [], "the embedded cluster outlived its driver"
            assert not (log.parent / "smoke" / "parts" / stage).exists() and moments.step(stage) >= reached
    processes.run(command, whole.env, log / "last").checked()


VICTIMS: dict[str, Interrupted] = {"worker": kill_workers, "driver": kill_drivers}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    victim: str, seed: int, uninterrupted: Pipeline, tmp_path: Path
) -> None:
    uninterrupted.finished.checked()
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        storage = tmp_path / str(attempt)
        command = processes.job("full_pipeline", *SMOKE, "--set", f"storage={storage}")
        try:
            VICTIMS[victim](command, uninterrupted, Moments(storage / "smoke", seed, attempt), storage / "log")
        except TooLateError as late:
            print(late)
            continue
        print(f"a {victim} killed in each stage, seed {seed}: {time.monotonic() - began:.0f} s")
        compare(storage / "smoke", uninterrupted.folder)
        return
    pytest.fail(f"{ATTEMPTS} runs, and in each a stage was over before its kill")


def compare(ours: Path, expected: Path) -> None:
    for path in (f"predictions/{system}.parquet" for system in SYSTEMS):
        assert (ours / path).read_bytes() == (expected / path).read_bytes(), path
    for stage, spec in STAGES.items():
        for part in spec.trains:
            path = f"parts/{stage}/{part}/model.safetensors"
            assert (ours / path).read_bytes() == (expected / path).read_bytes(), path
        log, whole = (
            [json.loads(line) for line in (folder / "stages" / stage / "progress.jsonl").read_text().splitlines()]
            for folder in (ours, expected)
        )
        assert [line["step"] for line in log] == list(range(1, len(whole) + 1))  # no gap, no repeat
        for key in ("loss", "lr", "valid_auc", "padding"):
            assert [line.get(key) for line in log] == [line.get(key) for line in whole], (stage, key)
    assert (ours / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
