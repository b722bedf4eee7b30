"""Experiment trackers: Ray's own logger callbacks for TensorBoard, MLflow and Weights & Biases.

Ray Tune calls them itself; ``TrainTracker`` calls them for a training run, one tracked run a stage. A tracker that
fails is left out with one warning and the training goes on.
"""

import json
import logging
import math
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.tune.logger import LoggerCallback

from rayrec import storage
from rayrec.config import Config
from rayrec.config.trackers import MlflowConfig, TrackersConfig, WandbConfig
from rayrec.errors import InputError

Warn = Callable[[str], object]

_logger = logging.getLogger(__name__)
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@|(?<=\?).*")  # of a URI: user:password@ and a signed query
_UPLOAD_SECONDS = 60  # how long the end of a stage waits for what is still on its way to a server


def check_trackers(config: TrackersConfig) -> None:
    """See that what the configured trackers need is there.

    Raises:
        InputError: a package is not installed, or the API key is not in the environment.
    """
    for name, section in (("mlflow", config.mlflow), ("wandb", config.wandb)):
        spec = find_spec(name) if section else None
        if section and (spec is None or spec.origin is None):  # no origin: a folder of that name, no package
            raise InputError(f"trackers.{name}: the package {name} is not installed; pip install 'rayrec[{name}]'")
    if config.wandb and config.wandb.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise InputError(
            "trackers.wandb: WANDB_API_KEY is not in the environment; set it, or set trackers.wandb.mode=offline"
        )


def tune_callbacks(config: TrackersConfig, folder: str, warn: Warn = _logger.warning) -> list[LoggerCallback]:
    """Ray's logger callbacks for ``ray.tune.RunConfig(callbacks=...)``, as configured.

    TensorBoard's files go into each trial's ``local_path``; MLflow and Weights & Biases go where the configuration
    says, the latter's local files under ``{folder}/wandb``, or into the trial's where ``folder`` is a URI.
    """
    found: list[LoggerCallback] = []
    if config.tensorboard:
        found.append(_tensorboard(warn))
    if config.mlflow:
        found.append(_mlflow(config.mlflow, warn))
    if config.wandb:
        found.append(_wandb(config.wandb, folder, warn))
    return found


def train_callbacks(config: Config, board: Any) -> list[ray.train.UserCallback]:
    """For ``ray.train.RunConfig(callbacks=...)``: none where no tracker is configured."""
    return [TrainTracker(config, board)] if config.trackers != TrackersConfig() else []


class TrainTracker(ray.train.UserCallback):
    """Hands each evaluation of a training run to the trackers; it lives in Ray Train's controller.

    TensorBoard's event files go into ``{folder}/tensorboard/{stage}`` of the run's folder. They need one that is a
    path: the configuration refuses TensorBoard where the storage is a URI.
    """

    def __init__(self, config: Config, board: Any) -> None:
        """``board`` (an actor like ``Board``) shows warnings: nobody sees what the controller prints."""
        self._config, self._board = config, board
        self._trackers = _absolute(config.trackers)  # here: the controller may work in another folder
        self._folder = storage.join(storage.absolute(config.storage), config.name)
        self._callbacks: list[LoggerCallback] | None = None
        self._runs: dict[str, _Run] = {}

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on the first worker's line; all workers report the same."""
        line = metrics[0]
        if self._callbacks is None:
            self._callbacks = tune_callbacks(self._trackers, self._folder, self._warn)
            for callback in self._callbacks:
                callback.setup()
        run = self._runs.get(line["stage"]) or self._start(line["stage"])
        if line["step"] <= run.step:  # told again by workers that were restarted
            return
        run.step = line["step"]
        for callback in self._callbacks:
            callback.log_trial_result(run.step, run, _numbers(line))  # type: ignore[arg-type]
            if line["last"]:
                callback.log_trial_end(run)  # type: ignore[arg-type]
                callback.on_experiment_end([run])  # type: ignore[list-item]  # else the controller's end cuts it off

    def _start(self, stage: str) -> "_Run":
        run = _Run(
            name=f"{self._config.name}-{stage}",
            group=self._config.name,
            config=_settings(self._config, stage),
            local_path=self._place(stage),
        )
        run.init_local_path()
        self._runs[stage] = run
        for callback in self._callbacks or ():
            callback.log_trial_start(run)  # type: ignore[arg-type]
        return run

    def _place(self, stage: str) -> str:
        if self._trackers.tensorboard:
            return storage.join(self._folder, "tensorboard", stage)
        return self._folder if storage.is_local(self._folder) else tempfile.mkdtemp(prefix="rayrec-")

    def _warn(self, line: str) -> None:
        _logger.warning(line)
        self._board.end.remote(line.partition(": ")[0], line)


@dataclass(eq=False)  # a key of the callbacks' dictionaries: each run is itself alone
class _Run:
    """What Ray's logger callbacks use of Tune's ``Trial``."""

    name: str
    group: str
    config: dict[str, Any]
    local_path: str
    trial_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    evaluated_params: dict[str, Any] = field(default_factory=dict)  # what a search varies
    step: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def experiment_dir_name(self) -> str:
        return self.group

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def _settings(config: Config, stage: str) -> dict[str, Any]:
    """What the tracked run shows as its settings: other stages' left out, and credentials within URIs."""
    shown = config.model_dump(mode="json", exclude={"storage", "trackers"})
    shown["stages"] = {stage: shown["stages"][stage]}
    cleaned: dict[str, Any] = json.loads(json.dumps(shown), object_hook=_without_credentials)
    return cleaned


def _without_credentials(node: dict[str, Any]) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        return _CREDENTIALS.sub("***", value) if isinstance(value, str) and "://" in value else value

    return {key: clean(value) for key, value in node.items()}


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a reported line: the trackers differ in what else they can bear."""
    kept = {
        key: float(value)
        for key, value in line.items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    }
    return kept | {"training_iteration": line["step"]}  # Tune's name for the horizontal axis


def _absolute(config: TrackersConfig) -> TrackersConfig:
    """SQLite's relative path made absolute."""
    mlflow = config.mlflow
    path = mlflow.tracking_uri.removeprefix("sqlite:///") if mlflow else ""
    if mlflow is None or path == mlflow.tracking_uri:
        return config
    there = mlflow.model_copy(update={"tracking_uri": f"sqlite:///{storage.absolute(path)}"})
    return config.model_copy(update={"mlflow": there})


class _Guarded(LoggerCallback):
    """Mixed in before a callback of Ray's: its first failure is told in one line, and from then on it does nothing."""

    def __init__(self, key: str, warn: Warn, **options: Any) -> None:
        super().__init__(**options)
        self._key, self._warn, self._left_out = key, warn, False

    def setup(self, *args: Any, **info: Any) -> None:
        self._attempt(super().setup, *args, **info)

    def log_trial_start(self, trial: Any) -> None:
        self._attempt(super().log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self._attempt(super().log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self._attempt(super().log_trial_end, trial, failed)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._attempt(super().on_experiment_end, trials, **info)

    def _attempt(self, action: Callable[..., object], *args: Any, **info: Any) -> None:
        if self._left_out:
            return
        try:
            action(*args, **info)
        except Exception as error:  # every tracker fails in its own way, and none is worth a training run
            self._left_out = True
            self._warn(f"trackers.{self._key}: left out from here on, the training goes on: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The last line of the message, where Ray puts the cause, without what must stay secret."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[-1]
    for value in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(value.strip(), "***")
    return text[:300]


def _tensorboard(warn: Warn) -> LoggerCallback:
    from ray.tune.logger import TBXLoggerCallback  # noqa: PLC0415

    class Tensorboard(_Guarded, TBXLoggerCallback):
        pass

    return Tensorboard("tensorboard", warn)


def _mlflow(config: MlflowConfig, warn: Warn) -> LoggerCallback:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
    # MLflow's own defaults hold up a training for minutes where the server is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: PLC0415  (seconds to import)

    class Mlflow(_Guarded, MLflowLoggerCallback):
        pass

    return Mlflow("mlflow", warn, tracking_uri=config.tracking_uri, experiment_name=config.experiment)


def _wandb(config: WandbConfig, folder: str, warn: Warn) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback  # noqa: PLC0415  (seconds to import)

    class Reported(WandbLoggerCallback):
        """Weights & Biases runs in an actor of its own, whose failures Ray's callback does not look at."""

        def setup(self, *args: Any, **info: Any) -> None:
            if config.mode == "offline":
                os.environ["WANDB_MODE"] = config.mode  # Ray asks for an API key otherwise
            super().setup(*args, **info)  # type: ignore[no-untyped-call]

        def _start_logging_actor(self, trial: Any, exclude_results: list[str], **options: Any) -> None:
            # Ray would put the key into the actor's runtime environment, and that into its logs; the actor has the
            # key from the environment that Ray was started in.
            with _hidden("WANDB_API_KEY"):
                super()._start_logging_actor(trial, exclude_results, **options)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if trial in self._trial_logging_futures:
                ray.get(ray.wait([self._trial_logging_futures[trial]], timeout=0)[0])  # ended already: it failed
            super().log_trial_result(iteration, trial, result)

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            self._signal_logging_actor_stop(trial=trial)
            self._reap(0)

        def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
            if self._reap(_UPLOAD_SECONDS):
                raise TimeoutError(f"not everything was sent within {_UPLOAD_SECONDS} s")

        def _reap(self, timeout: float) -> bool:
            """Wait for the actors, end those that are done, raise what one failed with; whether some are not done."""
            futures = list(self._trial_logging_futures.values())
            if not futures:
                return False
            done, late = ray.wait(futures, num_returns=len(futures), timeout=timeout)
            self._cleanup_logging_actors(kill_on_timeout=timeout > 0)
            ray.get(done)
            return bool(late)

    class Wandb(_Guarded, Reported):
        pass

    options: dict[str, Any] = {"dir": folder} if storage.is_local(folder) else {}
    return Wandb(
        "wandb",
        warn,
        project=config.project,
        entity=config.entity,
        mode=config.mode,
        # Nothing but what is handed over: no code, no git remote, nothing of the actor's output.
        settings={"console": "off", "disable_git": True, "save_code": False, "silent": True},
        **options,
    )


@contextmanager
def _hidden(variable: str) -> Iterator[None]:
    """The environment without a variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value
