"""Folds from the prepared files to the tables: against the whole data cut row by row, and as a person runs them."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from rayrec.config.data import DataConfig
from rayrec.data import columns as c
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import prepare

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
BATCH = "stages.pretrain_encoder.batch"
TREE: dict[str, Any] = {
    "name": "folded",
    "base": str(processes.ROOT / "configs" / "smoke.yaml"),
    "set": {
        "data.split": {"folds": 2},
        "cluster.workers": 1,
        "stages.pretrain_encoder.epochs": 2,
        "stages.pretrain_encoder.steps_per_epoch": 4,
    },
    "seeds": [0, 1],
    "reference": "Bias floor",
    "systems": {
        "Bias floor": {"system": "bias_floor"},
        "MC": {"system": "markov"},
        "SASRec": {"system": "sasrec"},
        "Large batches": {"system": "sasrec", "set": {BATCH: 1500}},  # more than fold 1 has rows
    },
}
Row = dict[str, Any]


def messy(folder: Path) -> DataConfig:
    """Ties in time, exact repeats, missing values, users and items that arrive late; in no order."""
    draw = np.random.default_rng(6)
    rows = [[draw.integers(3 + i // 30), draw.integers(4 + i // 20), draw.integers(1, 6), i // 7] for i in range(500)]
    rows += rows[::25]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).astype("Int64")
    frame["title"] = "T" + frame["item_id"].astype(str)
    frame = frame.iloc[draw.permutation(len(frame))]
    frame.iloc[5::97, 2] = None
    frame.to_csv(folder / "rows.csv", index=False)
    return DataConfig.model_validate(
        {"dataset": "table", "sources": ["x"], "warm_over": 2, "columns": {"title": "title"}}
    )


def read(folder: Path, name: str) -> list[Row]:
    rows: list[Row] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


def folds_of(whole: Path, folds: int) -> list[dict[str, list[Row]]]:
    """Every fold out of all prepared rows, row by row: a block begins at the time of its first row."""
    rows = [row for name in c.SPLITS for row in read(whole, name)]
    block = len(rows) // (folds + 2)
    starts = [rows[len(rows) - left * block]["timestamp"] for left in range(folds + 1, 0, -1)] + [10**9]
    return [
        {
            "train": [row for row in rows if row["timestamp"] < starts[fold]],
            "valid": [row for row in rows if starts[fold] <= row["timestamp"] < starts[fold + 1]],
            "test": [row for row in rows if starts[fold + 1] <= row["timestamp"] < starts[fold + 2]],
        }
        for fold in range(folds)
    ]


def marked(row: Row, train: list[Row]) -> Row:
    """The row with warm and cold as this training set has it."""
    user, item = (sum(one[key] == row[key] for one in train) for key in ("user_id", "item_id"))
    return row | {"is_warm": user > 2 and item > 2, "is_strict_cold": not user and not item}


@pytest.mark.usefixtures("ray_local")
def test_prepared_folds_are_the_whole_data_cut_row_by_row(tmp_path: Path) -> None:
    data = messy(tmp_path)
    raw = open_dataset(data, 0, [tmp_path / "rows.csv"], [])
    everything = prepare(data, raw, tmp_path / "whole")
    expected = folds_of(tmp_path / "whole", 3)
    for fold, sets in enumerate(expected, 1):
        own = DataConfig.model_validate(data.model_dump() | {"split": {"folds": 3, "fold": fold}})
        folder = tmp_path / str(fold)
        manifest = prepare(own, raw, folder)
        for name in c.SPLITS:
            assert read(folder, name) == [marked(row, sets["train"]) for row in sets[name]], (fold, name)
        kept = [row for name in c.SPLITS for row in sets[name]]
        liked: dict[int, list[int]] = {row["user_id"]: [] for row in read(tmp_path / "whole", "users")}
        for row in kept:
            assert row["seen"] == len(liked[row["user_id"]])
            liked[row["user_id"]] += [row["item_id"]] * row["label"]
        assert {row["user_id"]: row["liked"] for row in read(folder, "users")} == liked
        assert (folder / "items.parquet").read_bytes() == (tmp_path / "whole" / "items.parquet").read_bytes()
        *before, last = manifest["steps"]
        assert before == everything["steps"]
        users, items = ({row[key] for row in kept} for key in ("user_id", "item_id"))
        assert last == {
            **{"step": "drop rows after the fold", "rows": len(kept), "users": len(users), "items": len(items)},
            "dropped": before[-1]["rows"] - len(kept),
        }
        assert (manifest["split"]["folds"], manifest["split"]["fold"]) == (3, fold)
        assert manifest["split"]["t_valid"] <= sets["valid"][0]["timestamp"] < manifest["split"]["t_test"]
        assert kept[-1]["timestamp"] < manifest["split"]["t_end"]
        likes = sum(row["label"] for row in sets["train"])
        assert manifest["mean_liked_per_training_user"] == likes / len({row["user_id"] for row in sets["train"]})
    for one, following in itertools.pairwise(expected):
        assert following["valid"] == one["test"]
    assert sum(map(len, expected[-1].values())) == everything["steps"][-1]["rows"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_experiment_of_two_folds(job_env: dict[str, str], tmp_path: Path) -> None:
    file, folder, store = tmp_path / "folded.yaml", tmp_path / "folded", tmp_path / "store"
    tree = copy.deepcopy(TREE)
    tree["set"]["storage"] = str(tmp_path)
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    command = processes.job("experiment", "--config", str(file))

    plan = processes.run([*command, "--plan"], job_env, tmp_path / "plan").checked().out.splitlines()
    assert sum(line.startswith("fold ") for line in plan) == 2 and "12 pairs at most" in "\n".join(plan)
    first = processes.run(command, job_env, tmp_path / "first")
    assert first.code == 1 and "2 of 12 pairs failed; the same command tries them again" in first.err
    assert "pair 5 of 12  SASRec, seed 0, fold 1" in first.out and "pair 8 of 12  SASRec, seed 1, fold 2" in first.out
    assert "failed  Large batches, seed 1, fold 1: stages.pretrain_encoder.batch: 1500 rows" in first.out
    assert first.out.count("data  fold ") == 2 and len(list((store / "data").iterdir())) == 2
    results = json.loads((folder / "results.json").read_text())
    lost = results["systems"]["Large batches"]
    assert all(reason.startswith("fold 1: ") and "smaller batch" in reason for reason in lost["failures"].values())
    assert lost["slices"]["all"]["metrics"] == {} and results["folds"]["2"]["systems"]["Large batches"]["seeds"] == [
        0,
        1,
    ]
    print(f"experiment of two folds: {first.seconds:.0f} s")

    del tree["systems"]["Large batches"]
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    nowhere = job_env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    second = processes.run(command, nowhere, tmp_path / "second").checked()
    assert "all pairs are complete; nothing to train or score" in second.out and "means over 2 folds" in second.out
    whole = files(folder)
    processes.run(command, nowhere, tmp_path / "third").checked()
    assert files(folder) == whole
    check_results(folder)
    check_single_run(job_env, tmp_path, store)


def check_results(folder: Path) -> None:
    """The tables' means, out of the predictions; and the folds' test rows are others."""
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "report" / "tables" / "folds.tex").is_file() and set(results["folds"]) == {"1", "2"}
    tested = []
    for title, slug, seeds in (("SASRec", "sasrec", (0, 1)), ("MC", "mc", (0,))):
        frames = {
            (fold, seed): pd.read_parquet(folder / "predictions" / slug / f"fold-{fold}-seed-{seed}.parquet")
            for fold in (1, 2)
            for seed in seeds
        }
        each = {key: roc_auc_score(frame.label, frame.score) for key, frame in frames.items()}
        shown = results["systems"][title]["slices"]["all"]["metrics"]["auc"]
        assert shown["mean"] == pytest.approx(np.mean(list(each.values())), abs=1e-12)
        spread = np.sqrt(np.mean([np.var([each[fold, seed] for seed in seeds]) * 2 for fold in (1, 2)]))
        assert (shown["sd"] is None) if len(seeds) == 1 else shown["sd"] == pytest.approx(spread, abs=1e-12)
        tested.append([frames[fold, 0].drop(columns="score") for fold in (1, 2)])
    assert all(one.equals(other) for one, other in zip(*tested, strict=True))
    rows = [set(zip(frame.user_id, frame.item_id, strict=True)) for frame in tested[0]]
    assert rows[0] and rows[0] != rows[1]


def check_single_run(env: dict[str, str], storage: Path, store: Path) -> None:
    """One fold named in an ordinary configuration is prepared to the same bytes; all of them are no run."""
    options = ["--config", "configs/smoke.yaml", "--set", f"storage={storage}", "--set", "name=one"]
    refused = processes.run(
        processes.job("full_pipeline", *options, "--set", "data.split={folds: 2}"), env, storage / "refused"
    )
    assert refused.code == 2 and refused.err.count("\n") == 1 and "jobs/experiment.py" in refused.err
    assert not (storage / "one").exists()
    one = processes.job("prepare", *options, "--set", "data.split={folds: 2, fold: 2}")
    processes.run(one, env, storage / "prepare").checked()
    own = files(storage / "one" / "data")
    (same,) = (
        shared
        for shared in (store / "data").iterdir()
        if json.loads((shared / "manifest.json").read_text())["split"]["fold"] == 2
    )
    assert {name: content for name, content in own.items() if not name.startswith("prompts")} == files(same)
