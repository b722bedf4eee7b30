"""``--plan``: all that can be known of a run before it trains. Nothing is trained, nothing is kept in the storage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from rayrec import storage
from rayrec.config import Config
from rayrec.config.data import DATASET_SIZES, DataConfig
from rayrec.data.columns import SPLITS, USER_ID
from rayrec.data.datasets import open_dataset
from rayrec.data.prompts import Answers, resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.errors import InputError
from rayrec.models.checkpoints import local_backbone
from rayrec.models.sasrecllm import ModelShape
from rayrec.run import Run
from rayrec.settings import validate, with_values
from rayrec.sources import fetch
from rayrec.stages import STAGES, StageName, Task
from rayrec.training.cluster import check_fits, local_limit
from rayrec.training.footprint import TOKENS, Footprint, footprint
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.model import quiet_libraries
from rayrec.training.trackers import check_trackers

_GUESSED_MAX_LEN = 50  # stands in for `auto` until the data is prepared
_USABLE = 0.95  # of a card: what allocation in blocks leaves unused

# What makes a stage smaller, cheapest in time first; the first that fits is proposed.
_AGAIN = {"engine.gradient_checkpointing": True}
_ONE = {"stages.{stage}.micro_batch": 1}
_FOUR_BITS = {"backbone.quantised": "nf4"}
_SHARDED = {"engine.zero_stage": 3} | _AGAIN
_SMALLER: tuple[dict[str, Any], ...] = (
    _AGAIN,
    _ONE,
    _AGAIN | _ONE,
    _FOUR_BITS,
    _FOUR_BITS | _AGAIN,
    _SHARDED,
    _SHARDED | {"engine.offload": "all"} | _ONE,
)


class _Model(NamedTuple):
    name: str
    shape: Path | None  # a folder, or a config.json; None: no stage has a backbone
    answers: Answers | None  # None: no tokenizer at hand


def print_plan(config: Config) -> None:
    """Print stages, parameters, steps, rows and memory, then what would stop the run here.

    Raises:
        InputError: the run could not start: its sources, name, storage or cluster; all in one line, printed last.
    """
    quiet_libraries()
    run, problems = Run(config), _Problems()
    reached = problems.of(storage.check_writable, storage.absolute(config.storage))
    if reached:
        problems.of(run.check_name)
    problems.of(check_trackers, config.trackers)
    limit = local_limit()
    if limit is not None:
        problems.of(check_fits, config.cluster, limit)
    model = _model(config)
    if config.data.task is Task.NEXT_ITEM:
        problems.of(_check_names, config)
    prepared = reached and run.data.is_complete
    facts, origin = (run.facts, "prepared") if prepared else _expected(config, problems)
    ids = (model.answers.yes, model.answers.no) if model.answers else (0, 1)
    shape = ModelShape(
        users=facts.users, items=facts.items, max_len=facts.max_len, backbone=model.shape, answers=ids, empty=True
    )
    console = Console(width=100, highlight=False)
    console.print(f"{config.name}: {config.data.dataset}, {model.name}, seed {config.seed}")
    rows = facts.rows["train"]
    console.print(f"data ({origin})  {rows:,} training rows, {facts.items:,} items, history of {facts.max_len}")
    jobs = {stage: StageJob(config=config, stage=stage, facts=facts, data=run.path("data")) for stage in run.stages}
    needs = {stage: footprint(job, shape) for stage, job in jobs.items()}
    console.print(_stages(jobs, needs))
    console.print(_memory(needs))
    for line in _fitting(jobs, needs, shape):
        console.print(line, soft_wrap=True)
    _print_rest(console, run, model)
    problems.tell()


class _Problems:
    """Checks that failed; the plan goes on without them."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def of(self, check: Callable[..., Any], *arguments: Any) -> bool:
        """Whether ``check`` held."""
        try:
            check(*arguments)
        except InputError as error:
            self.found.append(str(error))
            return False
        return True

    def tell(self) -> None:
        """Raises ``InputError`` for what was found."""
        if self.found:
            raise InputError(" | ".join(self.found))


def _model(config: Config) -> _Model:
    """The smallest of the backbone that tells its shape.

    Raises:
        InputError: not even that is to be had.
    """
    if not any(STAGES[stage].reads.uses_backbone for stage in config.run_stages):
        return _Model("no backbone", None, None)
    if config.backbone.plan_from:
        path = Path(config.backbone.plan_from)
        if not path.is_file():
            raise InputError(f"backbone.plan_from: {path}: no such file; give the model's config.json, or leave it out")
        return _Model(path.stem, path, None)
    folder = local_backbone(config.backbone.sources, config_only=True)
    has_tokenizer = any(folder.glob("tokenizer*"))
    return _Model(folder.name, folder, resolve_answers(load_tokenizer(folder)) if has_tokenizer else None)


def _check_names(config: Config) -> None:
    """Raises ``InputError`` where no source delivers what reads the items' names."""
    for names in dict.fromkeys((config.names, config.ranking.embedding_ensemble.names or config.names)):
        local_backbone(names.sources, what="names", config_only=True)


def _stages(jobs: dict[StageName, StageJob], needs: dict[StageName, Footprint]) -> Table:
    table = _table("stage", "trains", "reads", "loss", numbers=("parameters", "steps", "rows"))
    for stage, job in jobs.items():
        table.add_row(
            stage.value,
            "+".join(job.trains),
            job.spec.reads.value,
            job.settings.loss.value,
            f"{needs[stage].trainable:,}",
            f"{job.total_steps:,}",
            f"{job.total_steps * job.settings.batch:,}",
        )
    return table


def _memory(needs: dict[StageName, Footprint]) -> Table:
    table = _table(
        "GB a worker", numbers=("weights", "gradients", "optimizer", "activations", "buffers", "all", "offloaded")
    )
    for stage, need in needs.items():
        parts = (need.weights, need.gradients, need.optimizer, need.activations, need.buffers, need.device, need.host)
        table.add_row(stage.value, *(f"{part / 1e9:.2f}" for part in parts))
    table.caption = f"prompts of {TOKENS} tokens, none shared: an upper bound of activations"
    table.caption_justify = "left"
    return table


def _fitting(jobs: dict[StageName, StageJob], needs: dict[StageName, Footprint], shape: ModelShape) -> list[str]:
    """Whether each stage fits the card, and what would make it fit."""
    cluster = next(iter(jobs.values())).config.cluster
    card = cluster.card_gb
    if card is None or not cluster.gpus_per_worker:
        return []
    room, lines = _USABLE * card * 1e9, []
    for stage, job in jobs.items():
        if needs[stage].device > room:
            mend = next((text for text, smaller in _smaller(job) if footprint(smaller, shape).device <= room), None)
            way = f"it would with {mend}" if mend else "nothing here would make it; take more workers or a larger card"
            lines.append(f"{stage} does not fit a card of {card:g} GB; {way}")
    return lines or [f"every stage fits a card of {card:g} GB, {1 - _USABLE:.0%} left free"]


def _smaller(job: StageJob) -> list[tuple[str, StageJob]]:
    """Variants of a stage, in words and as jobs."""
    variants = []
    for changes in _SMALLER:
        values = {path.format(stage=job.stage): value for path, value in changes.items()}
        text = " ".join(f"--set {path}={str(value).lower()}" for path, value in values.items())
        variants.append((text, replace(job, config=validate(with_values(job.config.model_dump(), values), text))))
    return variants


def _print_rest(console: Console, run: Run, model: _Model) -> None:
    config = run.config
    cluster, engine, answers = config.cluster, config.engine, model.answers
    workers = cluster.least if cluster.least == cluster.most else f"{cluster.least} to {cluster.most}"
    console.print(
        f"workers  {workers} x {cluster.cpus_per_worker} CPU, {cluster.gpus_per_worker} GPU;"
        f" ZeRO-{engine.zero_stage}, {config.backbone.quantised or engine.precision},"
        f" clipping at {engine.gradient_clipping:g}"
    )
    if answers and any(STAGES[stage].reads.asks(config.data.task) is Task.CLICK for stage in run.stages):
        console.print(
            f'answers  "Yes" is token {answers.yes}, "No" is token {answers.no}; score {config.backbone.score}'
        )
    console.print(f"output   {run.folder}", soft_wrap=True)


def _table(*names: str, numbers: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _expected(config: Config, problems: _Problems) -> tuple[DataFacts, str]:
    """Sizes before preparation, an upper bound, for dirty rows are not dropped yet; and where they come from."""
    data, wanted = config.data, config.encoder.max_len
    try:
        (rows, items, users), origin = _counted(data, config.seed), "expected"
    except InputError as error:
        if data.sources is not None or data.dataset not in DATASET_SIZES:
            raise
        problems.found.append(str(error))
        count, items, users = DATASET_SIZES[data.dataset]
        rows, origin = _shares(count, users, data), "published"
    facts = DataFacts(
        users=min(users, data.max_users or users),
        items=min(items, data.max_items or items),
        max_len=_GUESSED_MAX_LEN if wanted == "auto" else wanted,
        rows=rows,
    )
    return facts, origin


def _counted(data: DataConfig, seed: int) -> tuple[dict[str, int], int, int]:
    """Rows of each set, items and users of the sources, in one pass."""
    paths = [fetch(data.resolved_sources, what=f"dataset {data.dataset}")] if data.resolved_sources else []
    item_paths = [fetch(data.item_sources, what="item titles")] if data.item_sources else []
    raw = open_dataset(data, seed, [Path(p) for p in paths], item_paths)
    count, users = 0, pa.array([], pa.string())
    for table in raw.interactions():
        count += table.num_rows
        users = pc.unique(pa.chunked_array([users, *table[USER_ID].chunks]))
    items = sum(table.num_rows for table in raw.items())
    if raw.split is None:
        return _shares(count, len(users), data), items, len(users)
    valid, test = raw.split.starts
    return {"train": valid, "valid": test - valid, "test": count - test}, items, len(users)


def _shares(rows: int, users: int, data: DataConfig) -> dict[str, int]:
    """Rows of each set; of next items, every user's session is one."""
    if data.split.leave_one_out:
        return dict.fromkeys(SPLITS, users)
    valid, test, end = data.split.cuts(users if data.task is Task.NEXT_ITEM else rows)
    return {"train": valid, "valid": test - valid, "test": end - test}
