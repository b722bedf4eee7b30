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
from clicks import STAGES
from conftest import EPOCHS, SCORED, SMOKE, Pipeline
from processes import Running

from rayrec.stages import StageName

pytestmark = pytest.mark.timeout(1800)
ATTEMPTS = 3
# Shares of a stage. A killed driver's workers live on for two or three seconds, in which they must not end the stage.
EARLY, LATE, ANY = (0.0, 0.15), (0.2, 0.4), (0.0, 0.4)
Span = tuple[float, float]


class TooLateError(Exception):
    """The stage was over before the kill."""


class Moments:
    """When to kill: after how many of each stage's checkpoints, and how long after the last of them."""

    def __init__(self, store: Path, seed: int, attempt: int) -> None:
        self._store, self._random = store, random.Random(f"{seed} {attempt}")

    def await_next(self, stage: StageName, started: Running, between: Span) -> None:
        """Return when the stage's moment has come."""
        epochs = round(self._random.uniform(*between) * EPOCHS[stage])
        delay = self._random.uniform(0, 1)
        step = epochs * (10 if stage is StageName.PRETRAIN_ENCODER else 5)  # smoke.yaml's steps of an epoch
        print(f"kill in {stage}: {delay:.2f} s after step {step}")
        processes.wait_until(
            lambda: started.ended or (self._is_next(stage) and self.step(stage) >= step and bool(started.workers())),
            f"step {step} of {stage}",
        )
        time.sleep(delay)
        assert not started.ended, started.output()
        if self.is_over(stage):
            raise TooLateError(f"{stage} was over before the kill")

    def is_over(self, stage: StageName) -> bool:
        """The stage has handed on a part."""
        return any((self._store / stage).glob("*/parts/*"))

    def step(self, stage: StageName) -> int:
        """Step of the newest checkpoint."""
        names = [path.name for path in (self._store / stage).glob("*/checkpoints/step-????????")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def _is_next(self, stage: StageName) -> bool:
        """The stages before it are over, so that the workers seen are this stage's."""
        order = list(STAGES)
        before = order[: order.index(stage)]
        return (self._store / stage).exists() and all(self.is_over(earlier) for earlier in before)

    def pick(self, workers: list[psutil.Process]) -> psutil.Process:
        return self._random.choice(workers)


def kill_a_worker(stage: StageName, started: Running, moments: Moments, between: Span) -> None:
    """One of the stage's workers; Ray Train starts the group again."""
    moments.await_next(stage, started, between)
    victim = moments.pick(started.workers())
    victim.kill()
    assert processes.outliving([victim], 30) == []
    if moments.is_over(stage):
        raise TooLateError(f"{stage} was over before the kill")


def kill_the_driver(stage: StageName, started: Running, moments: Moments, between: Span) -> bool:
    """The driver; its embedded cluster ends with it. Whether the stage was left incomplete."""
    moments.await_next(stage, started, between)
    family = started.family()
    # Two agents of a node, of no use without it, wait a minute for their dead cluster before they give up.
    agents = [process for process in family if processes.title(process).endswith("Agent")]
    reached = moments.step(stage)
    started.kill()
    left = processes.outliving([process for process in family if process not in agents], 60)
    processes.end_all(family, grace=0)
    assert left == [], "the embedded cluster outlived its driver"
    assert moments.step(stage) >= reached
    print(f"{stage} stands at step {moments.step(stage)}{', complete' if moments.is_over(stage) else ''}")
    return not moments.is_over(stage)


def kill_workers(command: list[str], whole: Pipeline, moments: Moments, log: Path) -> None:
    with processes.running(command, whole.env, log) as started:
        for stage in STAGES:
            kill_a_worker(stage, started, moments, ANY)
        started.wait().checked()


def kill_drivers(command: list[str], whole: Pipeline, moments: Moments, log: Path) -> None:
    interrupted = []
    for stage in STAGES:
        with processes.running(command, whole.env, log / stage) as started:
            interrupted.append(kill_the_driver(stage, started, moments, ANY))
    assert any(interrupted)
    processes.run(command, whole.env, log / "last").checked()


def kill_both(command: list[str], whole: Pipeline, moments: Moments, log: Path) -> None:
    """In each stage a worker, and later the driver of the group that was started again: two tests for one start."""
    interrupted = []
    for stage in STAGES:
        with processes.running(command, whole.env, log / stage) as started:
            kill_a_worker(stage, started, moments, EARLY)
            interrupted.append(kill_the_driver(stage, started, moments, LATE))
    assert any(interrupted)
    processes.run(command, whole.env, log / "last").checked()


CASES = [
    pytest.param(kill_both, 0, id="both-0"),
    *(
        pytest.param(kills, seed, id=f"{name}-{seed}", marks=pytest.mark.full)
        for name, kills in (("worker", kill_workers), ("driver", kill_drivers))
        for seed in (1, 2, 3)
    ),
]


@pytest.mark.parametrize(("kills", "seed"), CASES)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    kills: Callable[..., None], seed: int, uninterrupted: Pipeline, tmp_path: Path
) -> None:
    uninterrupted.finished.checked()
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        storage = tmp_path / str(attempt)
        command = processes.job("full_pipeline", *SMOKE, "--set", f"storage={storage}")
        try:
            kills(command, uninterrupted, Moments(storage / "store", seed, attempt), storage / "log")
        except TooLateError as late:
            print(late)
            continue
        print(f"{kills.__name__}, seed {seed}: {time.monotonic() - began:.0f} s")
        compare(storage / "smoke", uninterrupted.folder)
        return
    pytest.fail(f"{ATTEMPTS} runs, and in each a stage was over before its kill")


def compare(ours: Path, expected: Path) -> None:
    for path in (f"predictions/{system}.parquet" for system in SCORED):
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
