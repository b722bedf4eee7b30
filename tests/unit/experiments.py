"""A small experiment, as its file says it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rayrec import storage
from rayrec.experiment.pairs import Pair, all_pairs, variants
from rayrec.experiment.settings import Experiment, load_experiment

ROOT = Path(__file__).resolve().parents[2]
PLAIN: dict[str, Any] = {
    "name": "e",
    "base": str(ROOT / "configs" / "smoke.yaml"),
    "seeds": [0, 1],
    "reference": "SASRec",
    "systems": {
        "Floor": {"system": "bias_floor"},
        "SASRec": {"system": "sasrec"},
        "MF": {"system": "sasrec", "set": {"encoder.kind": "mf"}},
        "Mapper only": {"system": "sasrecllm", "set": {"stages.tune_hybrid.trains": ["mapper"]}},
    },
}


def experiment(folder: Path, changes: Mapping[str, Any] = {}, *options: str) -> Experiment:
    path = folder / "e.yaml"
    tree = PLAIN | {"set": {"storage": str(folder / "runs")}} | dict(changes)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_experiment(path, options)


def with_system(title: str, entry: Any) -> dict[str, Any]:
    return {"systems": PLAIN["systems"] | {title: entry}}


def prepared(of: Experiment) -> None:
    """As if its data were prepared."""
    manifest = {"users": 2, "items": 3, "mean_liked_per_training_user": 2.4, "files": {"train.parquet": "a1"}}
    manifest["splits"] = {split: {"rows": 9, "users": 2} for split in ("train", "valid", "test")}
    for variant in variants(of):
        storage.write_text(f"{variant.data.folder}/manifest.json", json.dumps(manifest))
        for name in ("prompts", "rated", "floor"):
            storage.write_text(f"{variant.data.folder}/{name}/{name}.json", json.dumps({"files": {"train": "b2"}}))


def addressed(of: Experiment) -> dict[tuple[str, int], Pair]:
    prepared(of)
    return {(pair.title, pair.seed): pair for pair in all_pairs(of)}
