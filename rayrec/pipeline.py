"""The stages in order: prepare, train, score, report. Each step is skipped where its result is already there."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from rayrec import __version__, storage
from rayrec.config import Config
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import prepare
from rayrec.data.tokenise import FOLDER, MARK, load_tokenizer, write_prompts
from rayrec.errors import InputError
from rayrec.evaluation import write_metrics, write_run_report
from rayrec.models.checkpoints import local_backbone
from rayrec.run import Run
from rayrec.scoring import describe_sample, predictions_path, score_systems
from rayrec.sources import fetch
from rayrec.stages import STAGES, SYSTEMS, StageName, inherited
from rayrec.training.cluster import connected
from rayrec.training.job import StageJob
from rayrec.training.launch import run_stages
from rayrec.training.model import quiet_libraries
from rayrec.training.parts import CARD, is_complete, part_folder


def full_pipeline(config: Config) -> None:
    """Everything, from sources to report."""
    run = _start(config)
    if _is_finished(run):
        print("all stages are complete; nothing to do")
    else:
        with connected(config.cluster):
            _prepare(run)
            _train(run, list(STAGES))
            _evaluate(run)
    _print_result(run)


def prepare_only(config: Config) -> None:
    """The data and its prompts."""
    run = _start(config)
    with connected(config.cluster):
        _prepare(run)


def train_only(config: Config, stage: StageName) -> None:
    """One stage, from the parts that are there."""
    run = _start(config)
    _check_parts(run, [stage])  # before a cluster is started for it
    with connected(config.cluster):
        _prepare(run)
        _train(run, [stage])


def evaluate_only(config: Config) -> None:
    """Scores, metrics and report of a run whose stages are complete."""
    run = _start(config)
    with connected(config.cluster):
        _evaluate(run)
    _print_result(run)


def _start(config: Config) -> Run:
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("rayrec").setLevel(logging.INFO)
    warnings.filterwarnings("ignore")  # libraries' advice; our own warnings go through the logger
    quiet_libraries()
    run = Run(config)
    print(f"rayrec {__version__}  {config.name}  ->  {run.folder}", flush=True)
    run.bind()
    return run


def _is_finished(run: Run) -> bool:
    wanted = [run.path("data", "manifest.json"), run.path("metrics.json"), run.path("report", "index.html")]
    wanted += [predictions_path(run, system) for system in SYSTEMS]
    return all(storage.exists(path) for path in wanted) and all(is_complete(run.stage_job(s)) for s in STAGES)


def _prepare(run: Run) -> None:
    config, folder = run.config, run.path("data")
    backbone = local_backbone(config.backbone.sources)
    with tempfile.TemporaryDirectory() as scratch:
        if run.is_prepared:
            print("data  prepared before")
        else:
            where = Path(folder) if storage.is_local(folder) else Path(scratch) / "data"
            raw = open_dataset(config.data, config.seed, _sources(config), _titles(config))
            prepare(config.data, raw, where)
            if not storage.is_local(folder):
                _upload_prepared(where, folder)
            print(f"data  {_describe_data(run)}", flush=True)
        if not storage.exists(storage.join(folder, FOLDER, MARK)):
            write_prompts(folder, config.data, load_tokenizer(backbone), Path(scratch))


def _upload_prepared(local: Path, folder: str) -> None:
    """Everything first, the manifest last: it says that the data is complete."""
    manifest = local / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    storage.upload(local, folder)
    storage.write_bytes(storage.join(folder, manifest.name), content)
    shutil.rmtree(local)


def _sources(config: Config) -> list[Path]:
    sources = config.data.resolved_sources
    return [fetch(sources, what=f"dataset {config.data.dataset}")] if sources else []


def _titles(config: Config) -> list[Path]:
    sources = config.data.item_sources
    return [fetch(sources, what="item titles")] if sources else []


def _describe_data(run: Run) -> str:
    facts, manifest = run.facts, run.manifest
    rows = ", ".join(f"{count:,} {split}" for split, count in facts.rows.items())
    return f"{rows} rows; {manifest['users']:,} users, {facts.items:,} items; history of {facts.max_len}"


def _train(run: Run, stages: Sequence[StageName]) -> None:
    jobs = [run.stage_job(stage) for stage in stages]
    for job in jobs:
        if is_complete(job):
            print(f"{job.stage}  complete before")
    jobs = [job for job in jobs if not is_complete(job)]
    for job in jobs:
        _check_stage(job)
    _check_parts(run, [job.stage for job in jobs])
    if jobs:
        run_stages(jobs)


def _check_stage(job: StageJob) -> None:
    """Raises ``InputError`` for what would only fail once the workers are up."""
    if job.facts.rows["train"] < job.settings.batch:
        raise InputError(
            f"stages.{job.stage}.batch: {job.settings.batch} rows, but the training set has {job.facts.rows['train']};"
            " use a smaller batch"
        )


def _check_parts(run: Run, stages: Sequence[StageName]) -> None:
    """Raises ``InputError`` where a part that a stage starts from is not there, nor comes of a stage before it."""
    for number, stage in enumerate(stages):
        named = run.config.stages[stage].starts_from
        for part, source in inherited(stage).items():
            folder = named.get(part) or part_folder(run.folder, source, part)
            to_come = part not in named and source in stages[:number]
            if not to_come and not storage.exists(storage.join(folder, CARD)):
                raise InputError(
                    f"{folder}: no trained {part} here; run jobs/train_stage.py {source} first,"
                    f" or name another folder with --set stages.{stage}.starts_from.{part}=FOLDER"
                )


def _evaluate(run: Run) -> None:
    print(f"test  {describe_sample(run)}", flush=True)
    score_systems(run)
    write_run_report(run, write_metrics(run))


def _print_result(run: Run) -> None:
    import json  # noqa: PLC0415

    metrics = json.loads(storage.read_text(run.path("metrics.json")))
    print(f"{'':12}  {'AUC':>5} {'95% interval':>14}  {'UAUC':>5}  {'log loss':>8}")
    for system, spec in SYSTEMS.items():
        shown = metrics[system]["all"]["metrics"]
        auc = shown["auc"]
        interval = f"{_cell(auc['low'])} - {_cell(auc['high'])}"
        values = (_cell(auc["value"]), interval, _cell(shown["uauc"]["value"]), _cell(shown["log_loss"]["value"]))
        print("{:12}  {:>5} {:>14}  {:>5}  {:>8}".format(spec.title, *values))
    print(f"report  {run.path('report', 'index.html')}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
