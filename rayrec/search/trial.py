"""A trial: one configuration of the searched stage, told evaluation by evaluation.

What is on record in the store is told again without training, so a trial that was killed, stopped or finished before
goes on from its last evaluation, in this search or another.
"""

import json
import math
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rayrec import storage
from rayrec.config import Config, fingerprint
from rayrec.errors import DivergedError, InputError
from rayrec.names.tables import initial_table
from rayrec.preparation import prepare_table
from rayrec.search.config import Search
from rayrec.search.schedule import EVALUATION
from rayrec.search.suggest import OBJECTIVE, TRIAL, VALUES
from rayrec.store import Prepared, stage_jobs
from rayrec.training import checkpoint
from rayrec.training.job import StageJob
from rayrec.training.launch import StageError, train_stages
from rayrec.training.parts import is_complete

_POLL_SECONDS, _BRIEF_SECONDS = 1.0, 0.1
_CLAIM_SECONDS = 30.0  # a claim that is not renewed for so long belongs to a dead trial
FAILURE = "failure.json"
TOLD, STEP = "told.json", "step"  # of a saved trial


@dataclass(frozen=True)
class TrialSetting:
    """What all trials of a search share."""

    search: Search
    store: str
    data: Mapping[str, str]  # key of ``data_key`` -> folder of prepared data
    claims: Any
    gate: Any
    places: int | None = None  # how many train at once, where Tune starts more trials than that; None: it does not


def data_key(search: Search, values: Mapping[str, Any]) -> str:
    """Names the prepared data that a trial with these values reads."""
    return json.dumps({path: values[path] for path in sorted(values) if path.startswith("data.")})


@ray.remote(num_cpus=0)
class Claims:
    """Who trains which stage, so that trials that need the same one train it once; and at which place."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, stage: str, holder: str) -> bool:
        """Take or renew a claim; False while another holds it."""
        owner, renewed = self._held.get(stage, (holder, 0.0))
        if owner != holder and time.monotonic() - renewed < _CLAIM_SECONDS:
            return False
        self._held[stage] = holder, time.monotonic()
        return True

    def give_back(self, stage: str, holder: str) -> None:
        """End a claim."""
        if self._held.get(stage, ("", 0.0))[0] == holder:
            del self._held[stage]


class Training:
    """``train_stages`` in a thread, held at a gate after each evaluation until the next is wanted."""

    def __init__(self, job: StageJob, gate: Any) -> None:
        self._gate = gate
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def _run(self, job: StageJob) -> None:
        try:
            train_stages([job], self._gate)
        except BaseException as error:  # raised again where the trial waits
            self._error = error

    def has_ended(self) -> bool:
        """Raises what the training raised."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True


class Trial(tune.Trainable):
    """``step`` gives the next evaluation; the last carries ``done``."""

    def setup(self, config: dict[str, Any], setting: TrialSetting) -> None:  # type: ignore[override]  # with_parameters
        self._setting, self._values = setting, config[TRIAL][VALUES]
        self._holder = uuid.uuid4().hex
        self._told: Iterator[dict[str, Any]] | None = None
        self._evaluation, self._best = 0, math.nan
        self._job: StageJob | None = None
        self._place: str | None = None  # at which it trains
        self._donor: Path | None = None  # a saved trial to go on from

    def step(self) -> dict[str, Any]:
        if self._told is None:
            self._told = self._tell()
        return next(self._told)

    def save_checkpoint(self, checkpoint_dir: str) -> str:  # type: ignore[override]  # Tune takes a folder as well
        """How far the trial was told and its state there, for schedulers that pause trials or copy them.

        The training waits at its gate, so that the newest checkpoint is the one of the evaluation told last.
        """
        content: dict[str, Any] = {"evaluation": self._evaluation, "best": self._best}
        if self._job is not None and self._evaluation:
            content["fingerprint"] = self._job.fingerprint
            copy_step(self._job, self._evaluation, Path(checkpoint_dir))
        Path(checkpoint_dir, TOLD).write_text(json.dumps(content))
        return checkpoint_dir

    def load_checkpoint(self, saved: Any) -> None:
        self._donor = Path(tempfile.mkdtemp())  # Tune takes its own copy away
        shutil.copytree(saved, self._donor, dirs_exist_ok=True)
        content = json.loads((self._donor / TOLD).read_text())
        self._evaluation, self._best = content["evaluation"], content["best"]

    def cleanup(self) -> None:
        self._leave()
        if self._donor is not None:
            shutil.rmtree(self._donor, ignore_errors=True)

    def _tell(self) -> Iterator[dict[str, Any]]:
        try:
            self._job = job = self._branched(self._ready())
            for line in self._evaluations(job):
                yield self._result(line)
        except (InputError, StageError) as error:
            if isinstance(error, DivergedError) and self._job is not None:  # others may have been mended by next time
                storage.write_text(storage.join(self._job.folder, FAILURE), json.dumps({"reason": str(error)}))
            yield {OBJECTIVE: math.nan, EVALUATION: self._evaluation + 1, "error": str(error), "done": True}

    def _ready(self) -> StageJob:
        """The searched stage's job, once the stages before it are complete."""
        search = self._setting.search
        saved_always = {f"stages.{search.stage}.checkpoint_every": 1}  # what was told must be on record
        config = search.trial_config(self._values | saved_always)
        data = Prepared(self._setting.data[data_key(search, self._values)])
        self._write_names(config, data)
        jobs = stage_jobs(config, data, self._setting.store)
        for stage in config.stages.lineage(search.stage)[:-1]:
            if stage in jobs:
                self._train_once(jobs[stage])
        return jobs[search.stage]

    def _write_names(self, config: Config, data: Prepared) -> None:
        """The vectors that the encoder's items start from; two trials may need the same."""
        table = initial_table(config)
        if table is None:
            return
        folder = data.table_folder(table, self._setting.store)
        while not self._take(folder):
            time.sleep(_POLL_SECONDS)
        try:
            prepare_table(config, data, table)
        finally:
            ray.get(self._setting.claims.give_back.remote(folder, self._holder))

    def _branched(self, job: StageJob) -> StageJob:
        """The job itself, or, gone on with from a donor of other values, one with a folder of its own.

        Its address follows from its values, the donor's and the evaluation, so that a resumed search finds it again.
        """
        if self._donor is None:
            return job
        content = json.loads((self._donor / TOLD).read_text())
        if content.get("fingerprint") in (None, job.fingerprint):
            return job
        mark = fingerprint({"values": job.fingerprint, "from": content["fingerprint"], "at": content["evaluation"]})
        branch = replace(job, fingerprint=mark, folder=f"{job.folder.rpartition('/')[0]}/{mark[:16]}")
        if not (self._donor / STEP).is_dir():
            raise InputError(f"the state of evaluation {self._evaluation} that the trial should go on from is gone")
        if not storage.names(storage.join(branch.folder, "checkpoints")):
            storage.upload(
                self._donor / STEP, storage.join(branch.folder, "checkpoints", step_name(job, self._evaluation))
            )
        return branch

    def _train_once(self, job: StageJob) -> None:
        """Train a stage that other trials may need too, or wait for the one that does."""
        while not is_complete(job):
            if not self._claim(job):
                time.sleep(1)
                continue
            try:
                self._enter(job)
                ray.get(self._setting.gate.allow.remote(job.folder, math.inf))
                training = Training(job, self._setting.gate)
                while not training.has_ended():
                    self._claim(job)
                    time.sleep(_POLL_SECONDS)
            finally:
                self._leave()  # who holds a place never waits for a claim, whose holder may wait for a place
                self._unclaim(job)

    def _evaluations(self, job: StageJob) -> Iterator[dict[str, Any]]:
        """Evaluations from the next one on, each trained only when it is asked for."""
        record = storage.join(job.folder, FAILURE)
        if storage.exists(record):
            raise DivergedError(json.loads(storage.read_text(record))["reason"])
        while not self._claim(job):
            time.sleep(1)
        try:
            training: Training | None = None
            while True:
                lines = [line for line in recorded(job) if number_of(job, line) == self._evaluation + 1]
                if lines and not (lines[0]["last"] and not is_complete(job)):
                    yield lines[0]
                    if lines[0]["last"]:
                        return
                    continue
                if training is not None and training.has_ended():
                    raise StageError(f"stage {job.stage} ended without its next evaluation; see {job.folder}")
                self._enter(job)
                ray.get(self._setting.gate.allow.remote(job.folder, self._evaluation + 1))
                training = training or Training(job, self._setting.gate)
                if lines:  # the last one: its parts are on their way
                    time.sleep(_BRIEF_SECONDS)
                else:
                    self._await(training, job)
        finally:
            self._unclaim(job)

    def _await(self, training: Training, job: StageJob) -> None:
        """Until the next evaluation is on record, or the training has ended well."""
        told = self._setting.gate.until.remote(job.folder, self._evaluation + 1)
        while not training.has_ended():
            self._claim(job)
            if ray.wait([told], timeout=_POLL_SECONDS)[0]:
                return

    def _result(self, line: Mapping[str, Any]) -> dict[str, Any]:
        objective = self._setting.search.config.objective
        value = float(line[objective.metric])
        better = max if objective.mode == "max" else min
        self._best = value if math.isnan(self._best) else better(self._best, value)
        self._evaluation += 1
        numbers = {key: number for key, number in line.items() if isinstance(number, int | float)}
        return numbers | {OBJECTIVE: self._best, EVALUATION: self._evaluation, "done": bool(line["last"])}

    def _claim(self, job: StageJob) -> bool:
        """Take or renew the claim, and renew the place's."""
        if self._place is not None:
            self._take(self._place)
        return self._take(job.folder)

    def _take(self, what: str) -> bool:
        taken: bool = ray.get(self._setting.claims.take.remote(what, self._holder))
        return taken

    def _enter(self, job: StageJob) -> None:
        """Wait for a place to train ``job`` at."""
        while self._setting.places is not None and self._place is None:
            names = [f"place {number}" for number in range(self._setting.places)]
            self._place = next((name for name in names if self._take(name)), None)
            if self._place is None:
                self._claim(job)
                time.sleep(_POLL_SECONDS)

    def _leave(self) -> None:
        if self._place is not None:
            ray.get(self._setting.claims.give_back.remote(self._place, self._holder))
            self._place = None

    def _unclaim(self, job: StageJob) -> None:
        ray.get(self._setting.claims.give_back.remote(job.folder, self._holder))


def number_of(job: StageJob, line: Mapping[str, Any]) -> int:
    """The number of an evaluation, from 1."""
    return int(line["step"]) // job.steps_per_epoch


def step_name(job: StageJob, evaluation: int) -> str:
    """The checkpoint of an evaluation."""
    return checkpoint.step_name(evaluation * job.steps_per_epoch)


def copy_step(job: StageJob, evaluation: int, folder: Path) -> None:
    """Copy the checkpoint of an evaluation to ``folder/step``."""
    place = storage.join(job.folder, "checkpoints", step_name(job, evaluation))
    for name in storage.names(place):  # none, where a search told again is behind the newest checkpoints
        (folder / STEP).mkdir(exist_ok=True)
        (folder / STEP / name).write_bytes(storage.read_bytes(storage.join(place, name)))


def recorded(job: StageJob) -> list[dict[str, Any]]:
    """The stage's evaluations on record, in order."""
    path = storage.join(job.folder, "progress.jsonl")
    lines = [json.loads(line) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []
    return [line for line in lines if job.judged_by.value in line]
