"""A small experiment of folds, as its file says it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import experiments
import yaml

from rayrec import storage
from rayrec.experiment.pairs import Pair, all_pairs, variants
from rayrec.experiment.settings import Experiment

TITLES = ("Floor", "SASRec", "MF")
PLAIN = experiments.PLAIN | {"systems": {title: experiments.PLAIN["systems"][title] for title in TITLES}}
TWO = {"data.split": {"folds": 2}}


def experiment(folder: Path, values: Mapping[str, Any] = TWO, *options: str, **changes: Any) -> Experiment:
    return experiments.experiment(
        folder, PLAIN | {"set": {"storage": str(folder / "runs"), **values}} | changes, *options
    )


def based(folder: Path, split: Mapping[str, Any]) -> str:
    """A base of its own."""
    tree = yaml.safe_load((experiments.ROOT / "configs" / "smoke.yaml").read_text())
    tree["data"]["split"] = dict(split)
    (folder / "base.yaml").write_text(yaml.safe_dump(tree))
    return "base.yaml"


def addressed(of: Experiment) -> list[Pair]:
    """All pairs, as if their data were prepared; the folds' files differ."""
    for number, variant in enumerate(variants(of)):
        manifest = {"users": 2, "items": 3, "mean_liked_per_training_user": 2.4}
        manifest |= {"files": {"train.parquet": f"a{number}"}}
        manifest |= {"splits": {split: {"rows": 9 + number} for split in ("train", "valid", "test")}}
        storage.write_text(f"{variant.data.folder}/manifest.json", json.dumps(manifest))
        storage.write_text(f"{variant.data.folder}/prompts/prompts.json", json.dumps({"files": {"train": "b2"}}))
    return all_pairs(of)
