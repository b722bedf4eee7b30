"""The one training loop, for every stage and every trained baseline."""

import gc
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist

from rayrec.data.columns import ROW
from rayrec.data.plan import row_mark
from rayrec.data.streams import training_batches
from rayrec.errors import DivergedError, InputError
from rayrec.models.sasrecllm import trainable
from rayrec.stages import StageName
from rayrec.training import checkpoint
from rayrec.training.ahead import Ahead
from rayrec.training.checkpoint import Progress
from rayrec.training.engine import Engine
from rayrec.training.evaluate import open_validator
from rayrec.training.job import StageJob, derive_seed
from rayrec.training.log import ProgressLog, Stopwatch, peak_memory_gb
from rayrec.training.model import stage_model
from rayrec.training.notice import Notice
from rayrec.training.parts import is_complete, read_card, save_part
from rayrec.training.progress import Pulse

_WEIGHTS = "weights/"  # before a weight's name in a checkpoint
_SHOW_SECONDS = 0.3  # between two looks at the live line: an actor call a step would cost short steps dear


@dataclass(frozen=True)
class Summary:
    """How far the stages came; ``error`` is a message for the person who gave the input."""

    finished: tuple[StageName, ...] = ()
    error: str | None = None
    diverged: bool = False


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker of the group runs; ``config`` holds the ``StageJob``s and the driver's progress board.

    The group goes through all stages, since a start costs more than a short stage. After a restart it passes over
    those that have handed their parts on.
    """
    finished: list[StageName] = []
    try:
        for job in config["jobs"]:
            if not is_complete(job):
                stage = Stage(job, config["board"])
                stage.run()
                stage.close()
                del stage  # its memory goes before the next one's comes
                gc.collect()
            finished.append(job.stage)
    except InputError as error:  # the same on every worker; a restart would not mend it
        return asdict(Summary(tuple(finished), str(error), isinstance(error, DivergedError)))
    return asdict(Summary(tuple(finished)))


class Stage:
    """A worker's share of one stage."""

    def __init__(self, job: StageJob, board: Any) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.job, self.board = job.on(self.world), board
        job = self.job
        resumed = checkpoint.latest(job.folder) or _given(job)
        self.progress = resumed.progress if resumed else Progress()
        self.log = ProgressLog(job.folder, self.progress.step)
        self.stream = self._stream()  # fetches the first rows while the model loads
        self.model = stage_model(job)
        if resumed:
            self._load(resumed.state, job.settings.resume_from or job.folder)
        self.engine = Engine.of_stage(job, self.model)
        self.best = self.engine.weights()
        if resumed:
            self.engine.restore(resumed.state, self.progress.step)
            self.engine.restore_loss_scale(self.progress.loss_scale)
            self.best = {k.removeprefix("best/"): v for k, v in resumed.state.items() if k.startswith("best/")}
        self.validator = open_validator(job)

    def run(self) -> None:
        """Train from where the stage stands to its end, then hand its best parts on."""
        job, progress = self.job, self.progress
        self.shown, self.notice = 0.0, Notice(self.world)
        self.watch, started = Stopwatch(), time.perf_counter() - progress.seconds
        while progress.step < job.total_steps and not progress.stopped_early:
            line = self._step(progress.step)
            progress = replace(progress, step=progress.step + 1)
            if progress.step % job.steps_per_epoch == 0:
                progress = self._judge(progress, line)
                progress = replace(progress, seconds=time.perf_counter() - started)
            self.log.add(line)
            self._show(progress, line)
            if self._is_checkpoint(progress) or self.notice.has_come():
                self._save(progress)
            if job.judged_by.value in line:  # after it is saved: what was once told is not forgotten
                ray.train.report(line | {"stage": job.stage.value})
                self._pass(line)
        if self.rank == 0:
            self._hand_on(progress)
            ray.get(self.board.end.remote(job.stage.value, _closing_line(job, progress)))
        dist.barrier()

    def close(self) -> None:
        """Give back what would outlive this object."""
        self.stream.close()
        self.engine.close()

    def _step(self, step: int) -> dict[str, Any]:
        rows = next(self.stream)
        micro = self.job.micro_batches(rows)
        waited = self.watch.lap()
        torch.manual_seed(derive_seed(self.job.config.seed, self.job.stage, step, self.rank))
        self.model.set_mode(self.job.trains)
        loss = self.engine.step(micro, step)
        if not math.isfinite(loss):
            raise DivergedError(f"stages.{self.job.stage}.lr: the loss is {loss} at step {step + 1}; use a lower rate")
        filled, cells, mark, self.notice.unasked = _sums(
            sum(batch.filled for batch in micro),
            sum(batch.cells for batch in micro),
            row_mark(rows[ROW].to_numpy()),
            self.notice.elapsed,
        )
        busy = self.watch.lap()
        return {
            "step": step + 1,
            "epoch": step // self.job.steps_per_epoch,
            "loss": loss,
            "lr": self.engine.learning_rate,
            "grad_norm": self.engine.gradient_norm,
            "rows_per_s": self.job.settings.batch / (waited + busy),
            "tokens_per_s": filled / (waited + busy),
            "seconds": waited + busy,
            "wait_share": waited / (waited + busy),
            "padding": 1 - filled / cells,
            "row_mark": int(mark),
            "workers": self.world,
            "memory_gb": peak_memory_gb(),
        }

    def _judge(self, progress: Progress, line: dict[str, Any]) -> Progress:
        found = self.validator.evaluate(self.model, self.engine.device)
        line.update(found)
        judged = progress.judged(found[self.job.judged_by.value])
        judged = replace(judged, stopped_early=judged.stale >= self.job.settings.patience)
        line["last"] = judged.stopped_early or judged.step == self.job.total_steps
        if judged.best_step == progress.step or judged.best is None:  # none: validation told nothing so far
            self.best = self.engine.weights()
        self.watch.lap()
        return judged

    def _is_checkpoint(self, progress: Progress) -> bool:
        interval = self.job.settings.checkpoint_every * self.job.steps_per_epoch
        return progress.step % interval == 0 or progress.stopped_early or progress.step == self.job.total_steps

    def _save(self, progress: Progress) -> None:
        state = self.engine.state() | {f"best/{name}": tensor for name, tensor in self.best.items()}
        if self.rank == 0:
            self.log.write()  # before the checkpoint: a resumed stage cuts off what is beyond it
            checkpoint.save(self.job.folder, replace(progress, loss_scale=self.engine.loss_scale()), state)
        dist.barrier()
        self.watch.lap()

    def _pass(self, line: dict[str, Any]) -> None:
        """Wait until the evaluation after this one is wanted; the other workers wait at their next collective."""
        if self.rank == 0:
            evaluation = line["step"] // self.job.steps_per_epoch
            ray.get(self.board.passed.remote(self.job.folder, evaluation, line["last"]))
            self.watch.lap()

    def _show(self, progress: Progress, line: dict[str, Any]) -> None:
        if self.rank == 0 and time.monotonic() - self.shown > _SHOW_SECONDS:
            self.shown = time.monotonic()
            pulse = Pulse(
                stage=self.job.stage.value,
                step=line["step"],
                total=self.job.total_steps,
                loss=line["loss"],
                rows_per_s=line["rows_per_s"],
                judged_by=self.job.judged_by.shown,
                best=progress.best,
            )
            self.board.show.remote(pulse)

    def _hand_on(self, progress: Progress) -> None:
        job = self.job
        parents = {
            part.value: {"folder": folder, "sha256": read_card(folder)["sha256"]}
            for part, folder in job.origins.items()
        }
        for part in job.trains:
            prefix = f"{part}."
            weights = {k.removeprefix(prefix): v for k, v in self.best.items() if k.startswith(prefix)}
            card = {
                "stage": job.stage.value,
                "fingerprint": job.fingerprint,
                "config": job.config.model_dump(mode="json"),
                "facts": asdict(job.facts),
                "step": progress.best_step,
                job.judged_by.value: progress.best,
                "parents": parents,
            }
            save_part(job.part_folder(part), part, weights, card)

    def _stream(self) -> Ahead[pa.Table]:
        job = self.job
        if self.progress.step >= job.total_steps or self.progress.stopped_early:
            return Ahead(iter(()))
        return Ahead(training_batches(job.order(self.rank, self.world), self.progress.step, job.total_steps))

    def _load(self, state: dict[str, torch.Tensor], origin: str) -> None:
        """The weights of what the stage trains.

        Raises:
            InputError: a checkpoint that a person named is of another model, or of other parts.
        """
        parameters = trainable(self.model, self.job.trains)
        held = {name.removeprefix(_WEIGHTS): value for name, value in state.items() if name.startswith(_WEIGHTS)}
        for name in sorted(parameters.keys() | held.keys()):
            there, wanted = _shape(held.get(name)), _shape(parameters.get(name))
            if there != wanted:
                mend = "name a checkpoint of this stage and model"
                raise InputError(f"{origin}: {name}: {there}, and in this configuration {wanted}; {mend}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(held[name])


def _shape(tensor: torch.Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"


def _given(job: StageJob) -> checkpoint.Resumed | None:
    """The checkpoint that the configuration names: any precision, ZeRO stage and number of workers may have left it."""
    folder = job.settings.resume_from
    if folder is None:
        return None
    resumed = checkpoint.given(folder)
    if resumed.progress.step > job.total_steps:
        raise InputError(
            f"{folder}: of step {resumed.progress.step}, but stages.{job.stage} has {job.total_steps}; raise its epochs"
        )
    return resumed


def _sums(*values: float) -> tuple[float, ...]:
    """Each value added up over all workers; float64 holds whole numbers up to 2**53."""
    sums = torch.tensor(values, dtype=torch.float64)
    if torch.cuda.is_available():
        sums = sums.cuda()
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def _closing_line(job: StageJob, progress: Progress) -> str:
    early = ", stopped early" if progress.stopped_early else ""
    best = "none" if progress.best is None else f"{progress.best:.4f} at step {progress.best_step}"
    steps = f"{job.stage}  {progress.step} steps in {progress.seconds:.0f} s{early}"
    return f"{steps}; best valid {job.judged_by.shown} {best}"
