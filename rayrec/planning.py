"""``--plan``: all that can be known of a run before it trains. Nothing is trained, nothing is kept in the storage."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rayrec import storage
from rayrec.config import Config
from rayrec.data.datasets import open_dataset
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.checkpoints import local_backbone
from rayrec.models.sasrecllm import DTYPES, ModelShape, SASRecLLM, build, trainable
from rayrec.run import Run
from rayrec.sources import fetch
from rayrec.stages import STAGES
from rayrec.training.cluster import check_fits, local_limit
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.trackers import check_trackers

_GUESSED_MAX_LEN = 50  # stands in for `auto` until the data is prepared
_TOKENS = 256  # of a prompt, for the estimate: ten titles seldom need more


def print_plan(config: Config) -> None:
    """Check sources, backbone, name, storage and cluster; print stages, parameters, steps, rows, memory and places.

    Raises:
        InputError: one of the checks fails.
    """
    run = Run(config)
    storage.check_writable(storage.absolute(config.storage))
    run.check_name()
    check_trackers(config.trackers)
    limit = local_limit()
    if limit is not None:
        check_fits(config.cluster, limit)
    backbone = local_backbone(config.backbone.sources)
    answers = resolve_answers(load_tokenizer(backbone))
    facts, origin = (run.facts, "prepared") if run.data.is_complete else (_expected(config), "expected")
    ids = (answers.yes, answers.no)
    shape = ModelShape(items=facts.items, max_len=facts.max_len, backbone=backbone, answers=ids, empty=True)
    console = Console(width=100, highlight=False)
    console.print(f"{config.name}: {config.data.dataset}, {backbone.name}, seed {config.seed}")
    console.print(
        f"data ({origin})  {facts.rows['train']:,} training rows, {facts.items:,} items, history of {facts.max_len}"
    )
    console.print(_table(config, facts, shape, run))
    cluster, engine = config.cluster, config.engine
    console.print(
        f"workers  {cluster.workers} x {cluster.cpus_per_worker} CPU, {cluster.gpus_per_worker} GPU;"
        f" ZeRO-{engine.zero_stage}, {engine.precision}, clipping at {engine.gradient_clipping:g}"
    )
    console.print(f'answers  "Yes" is token {answers.yes}, "No" is token {answers.no}; score {config.backbone.score}')
    console.print(f"output   {run.folder}", soft_wrap=True)


def _table(config: Config, facts: DataFacts, shape: ModelShape, run: Run) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "trains", "reads", "loss"):
        table.add_column(name)
    for name in ("parameters", "steps", "rows", "GB a worker"):
        table.add_column(name, justify="right")
    for stage, spec in STAGES.items():
        job = StageJob(config=config, stage=stage, facts=facts, data=run.path("data"))
        need = _needs(job, shape)
        table.add_row(
            stage.value,
            "+".join(job.trains),
            spec.reads.value,
            job.settings.loss.value,
            f"{need.trainable:,}",
            f"{job.total_steps:,}",
            f"{job.total_steps * job.settings.batch:,}",
            f"{need.gigabytes:.2f}",
        )
    return table


@dataclass(frozen=True)
class _Needs:
    trainable: int
    gigabytes: float


def _needs(job: StageJob, shape: ModelShape) -> _Needs:
    """Exact parameter counts from the meta device, and the tensors of one worker: weights, optimizer, activations."""
    with torch.device("meta"):
        model = build(job.config, shape, parts=job.parts, with_backbone=job.spec.reads.uses_backbone)
    trained = sum(p.numel() for p in trainable(model, job.trains).values())
    total = sum(p.numel() for p in model.parameters())
    width = torch.finfo(DTYPES[job.precision]).bits // 8
    zero, workers = job.config.engine.zero_stage, job.config.cluster.workers
    weights = total * width / (workers if zero == 3 else 1)
    gradients = trained * 4 / (workers if zero >= 2 else 1)
    moments = trained * (8 + (4 if width < 4 else 0)) / (workers if zero >= 1 else 1)
    return _Needs(trained, (weights + gradients + moments + _activations(job, model, width)) / 1e9)


def _activations(job: StageJob, model: SASRecLLM, width: int) -> float:
    """Bytes kept for the backward pass of one micro-batch: about 34 hidden-widths a token and layer.

    The factor is that of Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4, without the attention
    matrix, which scaled_dot_product_attention does not keep.
    """
    if model.backbone is None:
        settings = job.config.encoder
        return job.micro_batch * job.facts.max_len * settings.blocks * settings.width * 34 * 4
    shape: Any = model.backbone.decoder.config
    layers = 1 if job.config.engine.gradient_checkpointing else shape.num_hidden_layers
    return float(job.micro_batch * _TOKENS * layers * shape.hidden_size * 17 * width)


def _expected(config: Config) -> DataFacts:
    """Sizes before preparation, from one pass over the sources: an upper bound, for dirty rows are not dropped yet."""
    data = config.data
    paths = [fetch(data.resolved_sources, what=f"dataset {data.dataset}")] if data.resolved_sources else []
    item_paths = [fetch(data.item_sources, what="item titles")] if data.item_sources else []
    raw = open_dataset(data, config.seed, [Path(p) for p in paths], item_paths)
    rows = sum(table.num_rows for table in raw.interactions())
    items = sum(table.num_rows for table in raw.items())
    wanted = config.encoder.max_len
    return DataFacts(
        items=min(items, data.max_items or items),
        max_len=_GUESSED_MAX_LEN if wanted == "auto" else wanted,
        rows={
            "train": math.floor(rows * data.split.train),
            "valid": math.floor(rows * data.split.valid),
            "test": rows - math.floor(rows * (data.split.train + data.split.valid)),
        },
    )
