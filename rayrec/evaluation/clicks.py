"""From predictions to ``metrics.json`` and the report."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rayrec import storage
from rayrec.binding import package_versions
from rayrec.config.model import ENCODER
from rayrec.data import columns as c
from rayrec.data.rows import HISTORY
from rayrec.data.tokenise import load_tokenizer, open_encoder, prompt_rows
from rayrec.evaluation.predictions import read_predictions
from rayrec.evaluation.sample import describe_sample, test_sample
from rayrec.metrics import evaluate_slices
from rayrec.models.checkpoints import local_backbone
from rayrec.report import ReportData, write_report
from rayrec.run import Run
from rayrec.systems import SystemName, titles
from rayrec.training.log import recorded

_EXAMPLES = 4


def write_metrics(run: Run) -> dict[str, Any]:
    """Metrics of every system's predictions, with intervals and counts; also written to ``metrics.json``."""
    settings = run.config.evaluation
    metrics = {
        system.value: evaluate_slices(
            read_predictions(run, system), cutoff=settings.cutoff, resamples=settings.bootstrap, seed=run.config.seed
        )
        for system in run.systems
    }
    storage.write_text(run.path("metrics.json"), json.dumps(metrics, indent=2) + "\n")
    return metrics


def write_run_report(run: Run, metrics: dict[str, Any]) -> str:
    """The report of a finished run; returns the place of its page."""
    predictions = {system: read_predictions(run, system) for system in run.systems}
    held = yaml.safe_load(storage.read_text(run.path("config.yaml")))
    data = ReportData(
        title=f"{run.config.name}: {run.config.data.dataset}",
        config_yaml=yaml.safe_dump(held["run"] | held["config"], sort_keys=False, allow_unicode=True),
        versions=package_versions(),
        manifest=run.manifest,
        metrics=metrics,
        titles={system.value: title for system, title in run.titles.items()},
        predictions={system.value: frame for system, frame in predictions.items()},
        progress={stage.value: recorded(run.path("stages", stage.value)) for stage in run.stages},
        examples=_examples(run, predictions),
        sample=describe_sample(run),
        notes=_notes(run),
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_report(data, Path(scratch))
        storage.upload(Path(scratch), run.path("report"))
    return run.path("report", "index.html")


def _examples(run: Run, predictions: dict[SystemName, pd.DataFrame]) -> list[dict[str, Any]]:
    """A few scored test rows as the language model reads them; drawn by seed, not picked."""
    ids = test_sample(run)
    drawn = np.random.default_rng(run.config.seed).permutation(len(ids))[:_EXAMPLES]
    folder = run.path("data")
    encoder = open_encoder(folder, run.config.data, load_tokenizer(local_backbone(run.config.backbone.sources)))
    rows = prompt_rows(folder, "test", run.config.data).fetch(ids[drawn])
    return [
        {
            "prompt": encoder.render(rows[HISTORY][i].as_py(), rows[c.ITEM_ID][i].as_py(), hybrid=True),
            "label": rows[c.LABEL][i].as_py(),
            "scores": {system.value: float(frame[c.SCORE].iloc[at]) for system, frame in predictions.items()},
        }
        for i, at in enumerate(drawn)
    ]


def _notes(run: Run) -> list[str]:
    """What a reader must know before quoting a figure."""
    config = run.config
    chosen = ", ".join(f"{stage} by {config.judged_by(stage).shown}" for stage in run.stages)
    notes = [
        "One training seed; intervals are 95% bootstrap intervals over test users and say nothing of other seeds.",
        f"Checkpoints were chosen on validation: {chosen}. The test rows were scored once, at the end.",
        "The bias floor is the smoothed mean of the user plus that of the item: what plain averages know.",
        "The feature floor is a logistic regression on counts, likenesses and factors of the training rows, its "
        "settings chosen on validation AUC and UAUC: what can be known without a neural model.",
        f"The backbone ran in {config.engine.precision}; its two answer logits are computed in fp32.",
    ]
    named = titles(config.encoder.kind)
    offsets = {SystemName.SASREC: config.encoder.offset, SystemName.SASRECLLM: config.mapper.offset}
    for start, owner in (("feature_floor", "the feature floor"), (ENCODER, named[SystemName.SASREC])):
        starting = " and ".join(named[system] for system, offset in offsets.items() if offset == start)
        if starting:
            notes.append(f"Scores of {starting} start from those of {owner}, and learn how much to add.")
    if config.encoder.members > 1:
        each = f"{config.encoder.members} encoders that learned each for itself"
        notes.append(f"{named[SystemName.SASREC]} is {each}; its score is the mean of theirs.")
    if config.mapper.features:
        notes.append(f"The item's soft tokens tell {named[SystemName.SASRECLLM]} the feature floor's features, too.")
    if config.data.dataset == "synthetic":
        notes.insert(0, "The data is generated: these figures show that the machinery works and nothing else.")
    return notes
