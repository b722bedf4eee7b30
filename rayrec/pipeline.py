"""The stages in order: prepare, train, score, report. Each step is skipped where its result is already there."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from rayrec import __version__, storage
from rayrec.config import Config
from rayrec.data.beside import read_beside
from rayrec.errors import InputError
from rayrec.evaluation.clicks import write_metrics, write_run_report
from rayrec.evaluation.next_item import metric_rows, write_list_metrics, write_run_list_report
from rayrec.evaluation.predictions import predictions_path
from rayrec.evaluation.sample import describe_judged
from rayrec.evaluation.scoring import score_systems
from rayrec.models.checkpoints import local_backbone
from rayrec.names.tables import tables_read
from rayrec.preparation import prepare_beside, prepare_rows, prepare_table
from rayrec.run import Run
from rayrec.stages import STAGES, StageName, Task
from rayrec.training.cluster import connected
from rayrec.training.job import StageJob
from rayrec.training.launch import run_stages
from rayrec.training.model import quiet_libraries, warn_of_slow_bf16
from rayrec.training.parts import CARD, is_complete
from rayrec.training.trackers import check_trackers


def full_pipeline(config: Config) -> None:
    """Everything, from sources to report."""
    run = _start(config, config.run_stages)
    if _is_finished(run):
        print("all stages are complete; nothing to do")
    else:
        with connected(config.cluster):
            _prepare(run)
            train_run(run, run.stages)
            _evaluate(run)
    _print_result(run)


def prepare_only(config: Config) -> None:
    """The data and its prompts."""
    run = _start(config, [])
    with connected(config.cluster):
        _prepare(run)


def train_only(config: Config, stage: StageName) -> None:
    """One stage, from the parts that are there."""
    task = config.data.task
    if task not in STAGES[stage].tasks:
        offered = " or ".join(config.run_stages)
        raise InputError(f"{stage} is no stage of data.task {task}; run jobs/train_stage.py {offered}")
    if section := config.lacks(stage):
        raise InputError(f"{section}: not in this configuration; write it, at least as {{}}")
    run = _start(config, [stage])
    _check_parents(run, stage)  # before a cluster is started for it
    with connected(config.cluster):
        _prepare(run)
        train_run(run, [stage])


def evaluate_only(config: Config) -> None:
    """Scores, metrics and report of a run whose stages are complete."""
    run = _start(config, config.run_stages)
    with connected(config.cluster):
        _evaluate(run)
    _print_result(run)


def quieten() -> None:
    """The job's own lines and warnings, and nobody else's."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("rayrec").setLevel(logging.INFO)
    warnings.filterwarnings("ignore")  # libraries' advice; our own warnings go through the logger
    quiet_libraries()


def _start(config: Config, stages: Sequence[StageName]) -> Run:
    quieten()
    check_trackers(config.trackers)
    warn_of_slow_bf16(config, stages)
    run = Run(config)
    print(f"rayrec {__version__}  {config.name}  ->  {run.folder}", flush=True)
    run.bind()
    return run


def _is_finished(run: Run) -> bool:
    wanted = [run.path("metrics.json"), run.path("report", "index.html")]
    wanted += [predictions_path(run, system) for system in run.systems]
    there = run.data.is_complete and all(storage.exists(path) for path in wanted)
    return there and all(run.holds(stage) for stage in run.stages)


def _prepare(run: Run) -> None:
    streams = [STAGES[stage].reads for stage in run.config.offered]
    if any(stream.uses_backbone for stream in streams):
        local_backbone(run.config.backbone.sources)  # a wrong one is told before any work
    if prepare_rows(run.config, run.data):
        print(f"data  {_describe_data(run)}", flush=True)
    else:
        print("data  prepared before")
    prepare_beside(run.config, run.data, read_beside(run.config, *streams))
    _prepare_names(run)


def _prepare_names(run: Run) -> None:
    if run.config.data.task is Task.NEXT_ITEM:
        for table in tables_read(run.config, run.systems):
            prepare_table(run.config, run.data, table)


def _describe_data(run: Run) -> str:
    facts, manifest = run.facts, run.manifest
    rows = ", ".join(f"{count:,} {split}" for split, count in facts.rows.items())
    return f"{rows} rows; {manifest['users']:,} users, {facts.items:,} items; history of {facts.max_len}"


def train_run(run: Run, stages: Sequence[StageName], *, label: str = "") -> None:
    """Train what neither the run nor the store holds, on one group of workers; ray is connected, the data prepared.

    ``label`` begins the lines of a run that does not train alone.

    Raises:
        InputError: a stage cannot be trained with these settings, or its loss is no number any more.
        StageError: a stage did not reach its end.
    """
    jobs = run.stage_jobs()
    missing = []
    for stage in stages:
        if run.holds(stage):
            print(f"{label}{stage}  complete before", flush=True)
        elif is_complete(jobs[stage]):
            run.take(jobs[stage])
            print(f"{label}{stage}  taken from the store, trained before by a run of the same settings", flush=True)
        else:
            _check_stage(jobs[stage])
            missing.append(jobs[stage])
    try:
        if missing:
            run_stages(missing, label=label)
    finally:  # what is complete is the run's, whatever became of the rest
        for job in missing:
            if is_complete(job):
                run.take(job)


def _check_stage(job: StageJob) -> None:
    """Raises ``InputError`` for what would only fail once the workers are up."""
    if job.training_rows < job.settings.batch:
        raise InputError(
            f"stages.{job.stage}.batch: {job.settings.batch} rows, but the training set has {job.training_rows};"
            " use a smaller batch"
        )


def _check_parents(run: Run, stage: StageName) -> None:
    """Raises ``InputError`` where a part that the stage starts from is neither in the run nor in the store."""
    jobs = run.stage_jobs() if run.data.is_complete else {}
    for part, source in run.config.stages.parents(stage).items():
        own = run.part_folder(source, part)
        if not storage.exists(storage.join(own, CARD)) and not (source in jobs and is_complete(jobs[source])):
            raise InputError(
                f"{own}: no trained {part} here; run jobs/train_stage.py {source} first,"
                f" or name another folder with --set stages.{stage}.starts_from.{part}=FOLDER"
            )


def _evaluate(run: Run) -> None:
    print(f"test  {describe_judged(run)}", flush=True)
    _prepare_names(run)  # which may be gone with the store since
    score_systems(run, run.systems)
    if run.config.data.task is Task.NEXT_ITEM:
        write_run_list_report(run, write_list_metrics(run))
    else:
        write_run_report(run, write_metrics(run))


def _print_result(run: Run) -> None:
    import json  # noqa: PLC0415

    metrics = json.loads(storage.read_text(run.path("metrics.json")))
    if run.config.data.task is Task.NEXT_ITEM:
        print(metric_rows(run, metrics).to_string(float_format="{:.4f}".format))
    else:
        _print_scores(run, metrics)
    print(f"report  {run.path('report', 'index.html')}")


def _print_scores(run: Run, metrics: dict[str, Any]) -> None:
    print(f"{'':13}  {'AUC':>5} {'95% interval':>14}  {'UAUC':>5}  {'log loss':>8}")
    for system, title in run.titles.items():
        shown = metrics[system]["all"]["metrics"]
        auc = shown["auc"]
        interval = f"{_cell(auc['low'])} - {_cell(auc['high'])}"
        values = (_cell(auc["value"]), interval, _cell(shown["uauc"]["value"]), _cell(shown["log_loss"]["value"]))
        print("{:13}  {:>5} {:>14}  {:>5}  {:>8}".format(title, *values))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
