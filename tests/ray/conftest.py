import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import processes
import pytest
import ray
from filelock import FileLock

from rayrec.config import Config
from rayrec.run import Run

# smoke.yaml with more epochs and a checkpoint after each: long enough for a kill to land in the middle of a stage.
EPOCHS = {"pretrain_encoder": 14, "tune_lora": 11, "tune_hybrid": 11}
LONGER = [
    option
    for stage, epochs in EPOCHS.items()
    for key, value in (("epochs", epochs), ("checkpoint_every", 1), ("patience", 99))
    for option in ("--set", f"stages.{stage}.{key}={value}")
]
SCORED = Run(Config()).systems  # by a run of any configuration that keeps the stages as they are
SMOKE = ["--config", "configs/smoke.yaml", *LONGER]
NEXT_ITEMS = ["--config", "configs/smoke_next_item.yaml"]
CANDIDATES, RERANKED = 30, 25  # of its encoder, and the sessions whose candidates a tiny language model puts in order
RERANKING = {
    "backbone.sources": "tiny",
    "engine.precision": "fp32",
    "ranking.sasrecllm": f"{{candidates: {CANDIDATES}, sessions: {RERANKED}}}",
    **dict.fromkeys(
        ("stages.tune_lora", "stages.tune_hybrid"), "{epochs: 2, steps_per_epoch: 4, batch: 8, valid_users: 20}"
    ),
}


@dataclass(frozen=True)
class Pipeline:
    """A run that nothing interrupted."""

    folder: Path  # {storage}/{name}
    options: list[str]
    finished: processes.Finished
    env: dict[str, str]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small Ray for all tests; its CPUs are logical."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def uninterrupted(job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The whole pipeline of the smoke configuration, once for all tests."""

    def run(storage: Path) -> Pipeline:
        options = [*SMOKE, "--set", f"storage={storage}"]
        finished = processes.run(processes.job("full_pipeline", *options), job_env, storage / "log")
        return Pipeline(storage / "smoke", options, finished, job_env)

    return _once("uninterrupted", tmp_path_factory, run)


@pytest.fixture(scope="session")
def next_items(job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The same of next items, with SASRecLLM."""

    def run(storage: Path) -> Pipeline:
        values = {**RERANKING, "storage": storage}
        options = [*NEXT_ITEMS, *(option for key, value in values.items() for option in ("--set", f"{key}={value}"))]
        finished = processes.run(processes.job("full_pipeline", *options), job_env, storage / "log")
        return Pipeline(storage / "smoke-next-item", options, finished, job_env)

    return _once("next-items", tmp_path_factory, run)


def _once(name: str, folders: pytest.TempPathFactory, run: Callable[[Path], Pipeline]) -> Pipeline:
    """What the first of all test processes that asks for it runs in a folder of that name; the others wait."""
    base = folders.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    told = Path(f"{shared}.json")
    with FileLock(f"{shared}.lock"):
        if not told.exists():
            pipeline = run(shared)
            print(f"{name}: {pipeline.finished.seconds:.0f} s")
            told.write_text(json.dumps(asdict(pipeline), default=str))
        held = json.loads(told.read_text())
    return Pipeline(Path(held["folder"]), held["options"], processes.Finished(**held["finished"]), held["env"])
