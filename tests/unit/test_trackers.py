"""Experiment trackers: what is told arrives, what is secret does not, and what fails stops nothing."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from tensorboardX.proto.event_pb2 import Event

from rayrec.config import Config, identity
from rayrec.config.trackers import TrackersConfig
from rayrec.errors import InputError
from rayrec.settings import load
from rayrec.training import trackers
from rayrec.training.trackers import TrainTracker, check_trackers, train_callbacks, tune_callbacks

KEY = "0123456789" * 4  # what a real key looks like
STAGES = ("pretrain_encoder", "tune_lora")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trackers set variables; none of the machine's own count, and none stay."""
    for name in ("WANDB_MODE", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "x")  # so that it is put back to what it was
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)


class Tracked:
    """A tracker as the controller has it, and what the board was told."""

    def __init__(self, folder: Path, *assignments: str) -> None:
        self.told: list[str] = []
        self.config = load(None, ["name=run", f"storage={folder}", *assignments])
        self.tracker = TrainTracker(self.config, SimpleNamespace(end=SimpleNamespace(remote=self._tell)))

    def _tell(self, key: str, line: str) -> None:
        assert line.startswith(f"{key}: ") and key.startswith("trackers.") and "\n" not in line
        self.told.append(line)

    def report(self, stage: str, step: int, last: bool = False, **more: Any) -> None:
        line = {"stage": stage, "step": step, "epoch": 0, "loss": 1 / step, "valid_auc": step / 100, "last": last}
        self.tracker.after_report(None, [line | more, {"loss": -1.0}], None)

    def train(self) -> None:
        """Two stages, with a restart of the workers in between and values that no tracker can draw."""
        for stage in STAGES:
            self.report(stage, 10, valid_uauc=None, note="text", valid_log_loss=float("nan"))
            self.report(stage, 10, loss=77.0)
            self.report(stage, 20, last=True)


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# Configuration


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["trackers.mlflow.tracking_uri=http://me:pass-word@host:5000"], "trackers.mlflow.tracking_uri: holds a user"),
        (["trackers.mlflow.tracking_uri=https://me:pass-wo/rd@host"], "trackers.mlflow.tracking_uri: holds a user"),
        (["trackers.mlflow.tracking_uri=postgresql://host/db?password=pass-word"], "holds a user or password"),
        (["trackers.mlflow.tracking_uri=mlruns"], "no longer keeps runs in plain folders"),
        (["trackers.mlflow.tracking_uri=file:///tmp/mlruns"], "no longer keeps runs in plain folders"),
        (["trackers.wandb.mode=disabled"], "trackers.wandb.mode"),
        (["trackers.wandb.api_key=x"], "unknown key 'trackers.wandb.api_key'"),
        (["storage=s3://bucket/runs", "trackers.tensorboard=true"], "tensorboard writes files into the run's folder"),
        (["storage=s3://bucket/runs", "trackers.wandb.mode=offline"], "wandb.mode: offline writes files into"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(assignments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(None, assignments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "pass-wo" not in str(caught.value)


@pytest.mark.parametrize(
    "assignments",
    [
        ["trackers.mlflow.tracking_uri=sqlite:////srv/a@b/mlflow.db"],
        ["trackers.mlflow.tracking_uri=https://host:5000/mlflow"],
        ["trackers.mlflow.tracking_uri=databricks"],
        ["storage=s3://bucket/runs", "trackers.wandb.project=p", "trackers.mlflow.tracking_uri=http://host"],
        ["storage=file:///runs", "trackers.tensorboard=true", "trackers.wandb.mode=offline"],
    ],
)
def test_what_can_be_is_taken_and_is_no_part_of_the_runs_identity(assignments: list[str]) -> None:
    found = load(None, assignments)
    assert found.trackers != TrackersConfig()
    assert identity(found) == identity(Config())


def test_without_trackers_there_is_no_callback() -> None:
    assert train_callbacks(Config(), None) == [] and tune_callbacks(TrackersConfig(), "/runs/x") == []
    assert len(train_callbacks(load(None, ["trackers.tensorboard=true"]), None)) == 1


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"])
def test_a_missing_package_is_told_with_its_mend(package: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, ["trackers.mlflow.tracking_uri=http://host", "trackers.wandb.project=p"]).trackers
    there = SimpleNamespace(origin="x")
    monkeypatch.setattr(trackers, "find_spec", lambda name: found if name == package else there)
    with pytest.raises(InputError) as caught:
        check_trackers(config)
    assert str(caught.value) == (
        f"trackers.{package}: the package {package} is not installed; pip install 'rayrec[{package}]'"
    )
    check_trackers(TrackersConfig(tensorboard=True))  # asks for neither


def test_a_missing_key_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    check_trackers(load(None, ["trackers.wandb.project=p"]).trackers)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(InputError, match="WANDB_API_KEY is not in the environment"):
        check_trackers(load(None, ["trackers.wandb.project=p"]).trackers)
    check_trackers(load(None, ["trackers.wandb.mode=offline"]).trackers)


# TensorBoard


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of the event files: records of length (8 bytes), its checksum (4), the event, its own (4)."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_tensorboard_has_each_evaluation_once_in_its_stages_folder(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path, "trackers.tensorboard=true")
    tracked.train()
    for stage in STAGES:
        found = scalars(tmp_path / "run" / "tensorboard" / stage)
        losses = [(step, pytest.approx(value)) for tag, step, value in found if tag == "ray/tune/loss"]
        assert losses == [(10, 0.1), (20, 0.05)]
        assert [value for tag, _, value in found if tag == "ray/tune/valid_auc"] == pytest.approx([0.1, 0.2])
        assert {tag.rpartition("/")[2] for tag, _, _ in found} == {"step", "epoch", "loss", "valid_auc"}
    assert tracked.told == []


# MLflow


def test_mlflow_has_one_run_a_stage_with_its_values(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    source = "trackers.mlflow.tracking_uri=sqlite:///mlflow.db"  # beside the driver, wherever the controller works
    tracked = Tracked(
        tmp_path,
        source,
        "trackers.mlflow.experiment=e",
        "data.sources=['https://me:pass-word@host/a.csv?sign=pass-word']",
    )
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    tracked.train()
    assert tracked.told == []
    client = mlflow.tracking.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert sorted(run.info.run_name for run in runs) == [f"run-{stage}" for stage in STAGES]
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "valid_auc")
        assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 0.2)]
        assert "valid_log_loss" not in run.data.metrics and run.info.status == "FINISHED"
        stage = run.info.run_name.removeprefix("run-")
        assert run.data.params[f"stages/{stage}/lr"] == "0.001" and run.data.params["data/dataset"] == "ml-100k"
        assert [name for name in run.data.params if name.startswith("stages/") and f"/{stage}/" not in name] == []
    assert files_with(tmp_path, "a.csv")  # the source itself is there, so the next two can fail
    assert not files_with(tmp_path, "pass-word") and not files_with(tmp_path, KEY)


# Weights & Biases


class Future:
    """What an actor has yet to do."""

    def __init__(self, work: Callable[[], None], failure: Exception | None) -> None:
        self.work, self.failure, self.done = work, failure, failure is not None

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self.work()

    def result(self) -> None:
        assert self.done
        if self.failure is not None:
            raise self.failure


class Actors:
    """Instead of a cluster: Ray's logging actors, whose work is done when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environments: list[Any] = []
        self.failure: Exception | None = None
        module = "ray.air.integrations.wandb"
        monkeypatch.setattr(f"{module}.Queue", lambda **_: queue.Queue())
        monkeypatch.setattr(f"{module}._force_on_current_node", dict)
        monkeypatch.setattr("ray.remote", self._remote)
        monkeypatch.setattr("ray.wait", self._wait)
        monkeypatch.setattr("ray.get", lambda futures: [future.result() for future in futures])
        monkeypatch.setattr("ray.kill", lambda actor: None)
        monkeypatch.setattr("os.chdir", lambda folder: None)  # the actor's own process would

    def _remote(self, runtime_env: Any, **_: Any) -> Any:
        self.environments.append(runtime_env)
        return lambda kind: SimpleNamespace(remote=lambda **given: self._start(kind(**given)))

    def _start(self, actor: Any) -> Any:
        return SimpleNamespace(run=SimpleNamespace(remote=lambda: Future(actor.run, self.failure)))

    def _wait(self, futures: list[Future], timeout: float, **_: Any) -> tuple[list[Future], list[Future]]:
        if timeout:
            for future in futures:
                future.finish()
        return [each for each in futures if each.done], [each for each in futures if not each.done]


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    pytest.importorskip("wandb")
    return Actors(monkeypatch)


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """First bytes of whoever uses the network: Python and Go alike ask a proxy where one is set."""
    found: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    with server.accept()[0] as caller:
                        found.append(caller.recv(100))
                except OSError:  # closed
                    return

        threading.Thread(target=accept, daemon=True).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield found
        server.shutdown(socket.SHUT_RDWR)


def test_wandb_offline_leaves_a_run_a_stage_and_calls_nobody(
    tmp_path: Path, actors: Actors, callers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")  # offline needs none
    tracked = Tracked(tmp_path, "trackers.wandb.mode=offline", "trackers.wandb.project=p")
    tracked.train()
    assert tracked.told == []
    found = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(found) == len(STAGES)
    for stage in STAGES:
        assert any(holds_at_last(path, f"run-{stage}", "valid_auc", "0.05") for path in found)
    assert callers == []


def holds_at_last(path: Path, *texts: str) -> bool:
    """W&B's own process writes on for a moment after the run has ended."""
    for _ in range(20):
        content = path.read_bytes()
        if all(text.encode() in content for text in texts):
            return True
        time.sleep(0.2)
    return False


def test_wandbs_key_stays_out_of_files_and_of_rays_runtime_environment(tmp_path: Path, actors: Actors) -> None:
    tracked = Tracked(tmp_path, "trackers.wandb.mode=offline", "trackers.tensorboard=true")
    tracked.train()
    assert tracked.told == []
    assert actors.environments == [{"env_vars": {}}]  # Ray writes it into its logs
    assert os.environ["WANDB_API_KEY"] == KEY
    assert files_with(tmp_path, "valid_auc") and not files_with(tmp_path, KEY)


# Failures


def test_a_server_that_is_away_is_told_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there once it is closed
    tracked = Tracked(tmp_path, f"trackers.mlflow.tracking_uri=http://127.0.0.1:{port}", "trackers.tensorboard=true")
    tracked.train()
    (line,) = tracked.told
    assert line.startswith("trackers.mlflow: left out from here on") and str(port) in line
    assert len(scalars(tmp_path / "run" / "tensorboard" / STAGES[1])) == 8


def test_a_logging_actor_that_died_is_told_once_without_the_key(tmp_path: Path, actors: Actors) -> None:
    actors.failure = RuntimeError(f"Traceback ...\n  at line 7\nCommError: {KEY} is no key\n")
    tracked = Tracked(tmp_path, "trackers.wandb.mode=offline")
    tracked.train()
    assert tracked.told == [
        "trackers.wandb: left out from here on, the training goes on: CommError: *** is no key",
    ]


def test_a_failure_in_the_middle_of_a_run_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = Tracked(tmp_path, "trackers.tensorboard=true")
    tracked.report(STAGES[0], 10)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", full)
    tracked.report(STAGES[0], 20)
    tracked.report(STAGES[0], 30, last=True)
    (line,) = tracked.told
    assert "No space left" in line


# What travels


def received(sent: bytes) -> Any:
    """What another process makes of it, as Ray loads it there; the bytes are this test's own, so safe to load."""
    return cloudpickle.loads(sent)


def test_the_callback_travels_to_the_controller_and_carries_no_secret(tmp_path: Path) -> None:
    assignments = ["trackers.tensorboard=true", "trackers.mlflow.tracking_uri=http://host", "trackers.wandb.project=p"]
    config = load(None, [f"storage={tmp_path}", *assignments])
    sent = cloudpickle.dumps(train_callbacks(config, None))
    assert KEY.encode() not in sent
    (found,) = received(sent)
    assert isinstance(found, TrainTracker)


def test_a_search_gets_rays_own_kinds_in_order_and_they_can_be_saved(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: PLC0415
    from ray.air.integrations.wandb import WandbLoggerCallback  # noqa: PLC0415
    from ray.tune.logger import TBXLoggerCallback  # noqa: PLC0415

    assignments = ["trackers.tensorboard=true", "trackers.mlflow.tracking_uri=http://host", "trackers.wandb.project=p"]
    found = tune_callbacks(load(None, assignments).trackers, str(tmp_path))
    kinds = (TBXLoggerCallback, MLflowLoggerCallback, WandbLoggerCallback)  # Tune adds its own where none of a kind is
    assert [isinstance(callback, kind) for callback, kind in zip(found, kinds, strict=True)] == [True] * 3
    sent = cloudpickle.dumps(found)
    assert len(received(sent)) == 3 and KEY.encode() not in sent
