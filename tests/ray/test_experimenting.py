"""An experiment as a person runs it: one system fails, is mended and tried again; nothing is trained twice.

The ensemble comes before the systems that it pools; one of them has a row of its own.
"""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pytest
import safetensors.torch
import torch
import yaml
from pages import EXPERIMENT_FIGURES, assert_needs_no_network
from sklearn.metrics import roc_auc_score

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
BATCH = "stages.tune_hybrid.batch"
FEW = {"epochs": 1, "steps_per_epoch": 3}
TREE: dict[str, Any] = {
    "name": "small",
    "base": str(processes.ROOT / "configs" / "smoke.yaml"),
    "set": {
        "cluster.workers": 1,
        "evaluation.users": 12,
        **{f"stages.{stage}.{key}": value for stage in ("tune_lora", "tune_hybrid") for key, value in FEW.items()},
        "stages.pretrain_encoder.epochs": 1,
    },
    "seeds": [0, 1],
    "reference": "SASRec & co.",
    "systems": {
        "Floor": {"system": "bias_floor"},
        "Ensemble": {"system": "ensemble"},
        "Mapper only": {"system": "sasrecllm", "set": {"stages.tune_hybrid.trains": ["mapper"], BATCH: 100_000}},
        "Joint": {
            "system": "sasrecllm",
            "set": {
                "stages.tune_hybrid.trains": ["encoder", "mapper", "lora"],
                "stages.tune_hybrid.starts_from": {"encoder": "fresh", "lora": "fresh"},
            },
        },
        "SASRec & co.": {"system": "sasrec"},
    },
}


def files(folder: Path) -> dict[str, bytes]:
    """Everything below it; nothing half-written is."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in paths if path.suffix == ".partial"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def stage_of(log: str) -> str:
    return log.partition("/")[0]


def trained(store: Path) -> dict[str, int]:
    """When each stage's log was last written."""
    logs = store.glob("*/*/progress.jsonl")
    return {log.parent.relative_to(store).as_posix(): log.stat().st_mtime_ns for log in logs}


def with_system(folder: Path, system: str) -> list[tuple[Path, dict[str, Any]]]:
    """The pairs of a system: folder and what addresses it."""
    found = [(path.parent, json.loads(path.read_text())) for path in (folder / "pairs").glob("*/pair.json")]
    return [(place, content) for place, content in found if content["system"] == system]


def assert_pooled(folder: Path, results: dict[str, Any]) -> None:
    """The ensemble's scores follow from its members' files and its weights; one member is the row of its own."""
    pools = with_system(folder, "ensemble")
    assert len(pools) == 2
    for place, content in pools:
        weights = json.loads((place / "predictions" / "ensemble.json").read_text())
        assert [*weights] == ["sasrec", "tallrec", "sasrecllm"] and sum(weights.values()) == pytest.approx(1)
        members = [folder / "pairs" / mark[:16] / "predictions" for mark in content["members"]]
        frames = [pd.read_parquet(of / f"{name}.parquet") for of, name in zip(members, weights, strict=True)]
        logits = [np.log(frame.score / (1 - frame.score)) for frame in frames]
        logit = np.average(logits, axis=0, weights=list(weights.values()))
        pooled = pd.read_parquet(place / "predictions" / "ensemble.parquet")
        assert pooled.score.to_numpy() == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-12)
        assert pooled.drop(columns="score").equals(frames[0].drop(columns="score"))
        valid = [pd.read_parquet(place / "validation" / f"{name}.parquet") for name in weights]
        assert valid[0].drop(columns="score").equals(valid[2].drop(columns="score"))
        assert weights in results["systems"]["Ensemble"]["weights"].values()
    rows = [path.read_bytes() for path in (folder / "predictions" / "sasrec-co").iterdir()]
    scored = [place / "predictions" / "sasrec.parquet" for place, _ in with_system(folder, "sasrec")]
    assert sorted(rows) == sorted(path.read_bytes() for path in scored)


def assert_joint(folder: Path) -> None:
    """One stage left all three parts, from nothing."""
    (stages,) = {
        tuple(sorted(path.name for path in (place / "parts").iterdir()))
        for place, _ in with_system(folder, "sasrecllm")
        if (place / "parts" / "tune_hybrid" / "lora").exists()
    }
    assert stages == ("tune_hybrid",)
    cards = [json.loads(path.read_text()) for path in folder.glob("pairs/*/parts/tune_hybrid/lora/part.json")]
    assert len(cards) == 2 and all(card["parents"] == {} and card["stage"] == "tune_hybrid" for card in cards)


def test_a_failing_system_is_mended_and_nothing_is_trained_twice(job_env: dict[str, str], tmp_path: Path) -> None:
    file, folder, store = tmp_path / "small.yaml", tmp_path / "small", tmp_path / "store"
    tree = copy.deepcopy(TREE) | {"set": {**TREE["set"], "storage": str(tmp_path)}}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    command = processes.job("experiment", "--config", str(file))

    first = processes.run(command, job_env, tmp_path / "first")
    assert first.code == 1 and "2 of 9 pairs failed; the same command tries them again" in first.err
    results = json.loads((folder / "results.json").read_text())
    reasons = results["systems"]["Mapper only"]["failures"]
    assert list(reasons) == ["0", "1"] and all("use a smaller batch" in reason for reason in reasons.values())
    assert results["systems"]["SASRec & co."]["seeds"] == [0, 1] and results["systems"]["Floor"]["seeds"] == [0]
    before = trained(store)
    # Nothing for what cannot be ended; of the hybrids the ensemble's and the joint ones.
    assert Counter(map(stage_of, before)) == {"pretrain_encoder": 2, "tune_lora": 2, "tune_hybrid": 4}

    tree["systems"]["Mapper only"]["set"][BATCH] = 16
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / "results.json.1234abcd.partial").touch()  # killed while it wrote
    second = processes.run(command, job_env, tmp_path / "second").checked()
    after = trained(store)
    assert {name: after.get(name) for name in before} == before  # the encoders are below the mappers, too
    assert list(map(stage_of, after.keys() - before.keys())) == ["tune_hybrid"] * 2
    assert len(list((store / "data").iterdir())) == 1 and second.out.count("complete before") == 7
    print(f"experiment: {first.seconds:.0f} s and, mended, {second.seconds:.0f} s")

    whole = files(folder)
    nowhere = job_env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    third = processes.run(command, nowhere, tmp_path / "third").checked()
    assert "all pairs are complete; nothing to train or score" in third.out
    assert files(folder) == whole and trained(store) == after

    results = json.loads((folder / "results.json").read_text())
    slugs = {"SASRec & co.": "sasrec-co", "Mapper only": "mapper-only", "Joint": "joint", "Ensemble": "ensemble"}
    for title, slug in slugs.items():
        frames = [pd.read_parquet(folder / "predictions" / slug / f"{seed}.parquet") for seed in (0, 1)]
        assert frames[0].drop(columns="score").equals(frames[1].drop(columns="score"))
        assert frames[0].user_id.nunique() == 12 and not frames[0].score.equals(frames[1].score)
        found = results["systems"][title]["slices"]["all"]["metrics"]["auc"]["mean"]
        assert found == pytest.approx(sum(roc_auc_score(frame.label, frame.score) for frame in frames) / 2, abs=1e-12)
        cost = results["systems"][title]["cost"]
        assert cost["parameters"] > 0 and all(sum(each.values()) > 0 for each in cost["seconds"].values())
    assert_pooled(folder, results)
    assert_joint(folder)
    report = folder / "report"
    assert r"SASRec \& co." in (report / "tables" / "results.tex").read_text()
    assert "SASRec &amp; co." in (report / "index.html").read_text()
    assert_needs_no_network((report / "index.html").read_text())
    assert {path.name for path in (report / "figures").iterdir()} == {f"{name}.svg" for name in EXPERIMENT_FIGURES}
    for name in EXPERIMENT_FIGURES - {"cold_warm"}:  # whose numbers are those of the table of slices
        assert "Mapper only" in set(pd.read_csv(report / "tables" / f"{name}.csv")["title"]), name
    curve = pd.read_csv(report / "tables" / "training.csv")
    assert curve["valid_auc"].notna().any() and set(curve["seed"]) == {0, 1}

    plan = processes.run([*command, "--plan"], job_env, tmp_path / "plan").checked().out.splitlines()
    assert len(plan) <= 24 and max(map(len, plan)) <= 100 + len(str(folder))
    assert any("0 of 9 pairs, for which 0 stages are to be trained" in line for line in plan)
    text = processes.run([*command, "--help"], job_env, tmp_path / "help").checked().out.splitlines()
    assert len(text) <= 24 and max(map(len, text)) <= 100 and "--plan" in "\n".join(text)


OFFSET = "feature_floor"
STILL = {f"stages.{stage}.lr": 1e-12 for stage in ("pretrain_encoder", "tune_hybrid")}
FURTHER: dict[str, Any] = {
    "Feature floor": {"system": "feature_floor"},
    "Rated": {
        "system": "sasrec",
        "set": {"encoder.kind": "gru", "encoder.history": "rated", "stages.pretrain_encoder.loss": "next_item"},
    },
    "SASRec + floor": {"system": "sasrec", "set": {"encoder.offset": OFFSET, "stages.pretrain_encoder.lr": 0.03}},
    "SASRec + floor, still": {"system": "sasrec", "set": {"encoder.offset": OFFSET, **STILL}},
    "Both": {"system": "sasrecllm", "set": {"encoder.history": "rated", "mapper.offset": OFFSET}},
    "Told": {"system": "sasrecllm", "set": {"mapper.features": OFFSET}},
    "Both, still": {"system": "sasrecllm", "set": {"encoder.history": "rated", "mapper.offset": OFFSET, **STILL}},
}


def test_what_is_better_than_the_paper(job_env: dict[str, str], tmp_path: Path) -> None:
    """Rated histories and offsets, from the rows to the scores; what learns nothing is the floor, row by row."""
    file, folder, store = tmp_path / "more.yaml", tmp_path / "more", tmp_path / "store"
    tree = {**TREE, "name": "more", "seeds": [0], "reference": "Feature floor", "systems": FURTHER}
    file.write_text(yaml.safe_dump(tree | {"set": {**TREE["set"], "storage": str(tmp_path)}}, sort_keys=False))
    command = processes.job("experiment", "--config", str(file))
    processes.run(command, job_env, tmp_path / "first").checked()
    (data,) = (store / "data").iterdir()
    assert {path.name for path in data.iterdir() if path.is_dir()} == {"prompts", "rated", "floor", "features"}
    titles = json.loads((folder / "results.json").read_text())["systems"]
    assert not any(row["failures"] for row in titles.values())
    scores = {path.name: pd.read_parquet(path / "0.parquet")["score"] for path in (folder / "predictions").iterdir()}
    floor = scores.pop("feature-floor")
    for name in ("sasrec-floor-still", "both-still"):
        assert scores.pop(name).tolist() == pytest.approx(floor.tolist(), abs=1e-6)
    assert all(not score.equals(floor) and score.nunique() > 20 for score in scores.values())
    mappers = [safetensors.torch.load_file(path) for path in folder.glob("pairs/*/parts/*/mapper/model.safetensors")]
    (told,) = (weights["features.weight"] for weights in mappers if "features.weight" in weights)
    assert told.any(0).all()
    keys = [f"offset.{key}" for key in ("own", "start", "bias")]
    offsets = [[weights[key] for key in keys] for weights in mappers if weights.keys() >= set(keys)]
    assert len(offsets) == 2 and all(weight.dtype is torch.float32 for three in offsets for weight in three)

    whole = files(folder)
    nowhere = job_env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    processes.run(command, nowhere, tmp_path / "second").checked()
    assert files(folder) == whole
