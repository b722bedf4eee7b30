"""The figures of an experiment, of invented systems: complete, patient with what is missing, the same each time."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pages import assert_ids_are_unique, assert_needs_no_network, assert_same_files
from sklearn import metrics as reference

from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.experiment.evidence import POPULARITY, gather
from rayrec.experiment.results import Told, summarise
from rayrec.experiment.settings import Experiment, load_experiment, needed_stages
from rayrec.report import ExperimentReportData, write_experiment_report

ROOT = Path(__file__).resolve().parents[2]
MAPPER_ONLY = {"stages.tune_hybrid.trains": ["mapper"]}
SYSTEMS: dict[str, dict[str, Any]] = {
    "Bias floor": {"system": "bias_floor"},
    "Feature floor": {"system": "feature_floor"},
    "MC": {"system": "markov"},
    "MF": {"system": "sasrec", "set": {"encoder.kind": "mf"}},
    "NeuMF": {"system": "sasrec", "set": {"encoder.kind": "neumf"}},
    "GRU": {"system": "sasrec", "set": {"encoder.kind": "gru"}},
    "SASRec": {"system": "sasrec"},
    "ICL": {"system": "icl"},
    "TALLRec": {"system": "tallrec"},
    "SASRecLLM": {"system": "sasrecllm"},
    "SASRecLLM, mapper only": {"system": "sasrecllm", "set": MAPPER_ONLY},
    "SASRecLLM over MF, mapper only, at a lower rate": {
        "system": "sasrecllm",
        "set": MAPPER_ONLY | {"encoder.kind": "mf", "stages.tune_hybrid.lr": 1e-4},
    },
}
FIGURES = {
    "ablation",
    "auc_by_history",
    "auc_by_popularity",
    "calibration",
    "cold_warm",
    "confusion",
    "cost",
    "training",
}
ROWS = 1500


def experiment(folder: Path, systems: Mapping[str, Any] = SYSTEMS) -> Experiment:
    path = folder / "e.yaml"
    tree = {"name": "e", "base": str(ROOT / "configs" / "smoke.yaml"), "seeds": [0, 1], "reference": "SASRec"}
    path.write_text(yaml.safe_dump(tree | {"systems": dict(systems)}, sort_keys=False))
    return load_experiment(path)


def invented(of: Experiment, rows: int = ROWS) -> tuple[dict[str, Told], pd.DataFrame]:
    """What became of every title, the later the better; and the counts of the rows."""
    generator = np.random.default_rng(5)
    user = np.sort(generator.integers(0, 90, rows))
    taste = generator.normal(0, 1, rows)
    columns = {"user_id": user, "item_id": generator.integers(1, 300, rows), "label": (taste > 0).astype(np.int8)}
    seen = generator.geometric(0.02, rows) - 1
    popularity = (generator.pareto(1.2, rows) * 20).astype(np.int64)
    warm = (seen > 3) & (popularity > 3)
    columns |= {"is_warm": warm, "is_strict_cold": ~warm & (seen < 20)}
    told = {}
    for index, (title, entry) in enumerate(of.config.systems.items()):
        logits = {s: (0.1 + 0.08 * index) * taste + generator.normal(0, 1, rows) for s in of.seeds(title)}
        frames = {s: pd.DataFrame(columns | {"score": 1 / (1 + np.exp(-x))}) for s, x in logits.items()}
        told[title] = Told(
            predictions={seed: frame[PREDICTIONS_SCHEMA.names] for seed, frame in frames.items()},
            failures={},
            progress={seed: invented_progress(generator, needed_stages(entry.system)) for seed in of.seeds(title)},
            parameters=[0, 10**5, 0, 10**6 + 7 * 10**5][len(needed_stages(entry.system))] + 1000 * index
            if needed_stages(entry.system)
            else 0,
        )
    counts = pd.DataFrame({name: columns[name] for name in ("user_id", "item_id")})
    return told, counts.assign(seen=seen, **{POPULARITY: popularity})


def invented_progress(generator: np.random.Generator, stages: tuple[str, ...]) -> pd.DataFrame:
    frames = [pd.DataFrame(columns=["stage", "step", "loss", "valid_auc", "seconds"])]
    for stage in stages:
        steps = {"pretrain_encoder": 3000, "tune_lora": 40, "tune_hybrid": 75}[stage] - 5 * int(generator.integers(3))
        step = np.arange(1, steps + 1)
        loss = 0.55 + 0.15 * np.exp(-4 * step / steps) + generator.normal(0, 0.03, steps)
        valid = np.where(
            step % max(5, steps // 12) == 0, 0.6 + 0.1 * step / steps + generator.normal(0, 0.01, steps), np.nan
        )
        seconds = generator.gamma(2, 0.02 if stage == "pretrain_encoder" else 2.0, steps)
        frames.append(
            pd.DataFrame({"stage": str(stage), "step": step, "loss": loss, "valid_auc": valid, "seconds": seconds})
        )
    return pd.concat(frames[1:] or frames, ignore_index=True)


def write(of: Experiment, told: Mapping[str, Told], counts: pd.DataFrame, folder: Path) -> dict[str, Any]:
    results = summarise(of, told, "1,500 rows of 90 users")
    evidence = gather(told, counts, results["cutoff"])
    write_experiment_report(
        ExperimentReportData(
            title="e", results=results, evidence=evidence, config_yaml="", versions={"rayrec": "1"}, notes=["One."]
        ),
        folder,
    )
    return results
