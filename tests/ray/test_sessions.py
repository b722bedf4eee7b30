"""Next items from the files to a trained encoder: against a slow preparation, and as a person runs it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pyarrow.parquet as pq
import pytest
import slow_sessions
from slow_sessions import Event

from rayrec.config.data import DataConfig
from rayrec.data import blocks, columns
from rayrec.data import prepare as preparation
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import prepare
from rayrec.errors import InputError

WHOLE = {"train": 0.5, "valid": 0.2}


def messy(folder: Path) -> tuple[list[Event], dict[str, str]]:
    """Sessions full of ties, repeats, unknown items and low ratings, in no order; some are too short, some too rare."""
    draw = np.random.default_rng(7)
    rows = [
        (f"u{min(draw.integers(90, size=2))}", f"i{min(draw.integers(60, size=2))}", int(draw.integers(1, 6)), time)
        for time in range(900)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    frame["timestamp"] //= 9
    frame = pd.concat([frame, frame.iloc[::40]]).iloc[draw.permutation(len(rows) + len(frame.iloc[::40]))]
    frame.to_csv(folder / "rows.csv", index=False)
    titles = {f"i{i}": "" if i == 3 else f"Thing {i}" for i in range(60) if i % 9 != 4}
    pd.DataFrame(titles.items(), columns=["item_id", "title"]).to_csv(folder / "items.csv", index=False)
    return [Event(*row) for row in frame.itertuples(index=False, name=None)], titles


def of_task(**changes: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"task": "next_item", "dataset": "table", "sources": ["x"], "warm_over": 4, **changes}
    )


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    "changes",
    [
        {"split": {"leave_one_out": True}, "core": 5, "repeats": "first"},
        pytest.param({"split": WHOLE, "core": 4, "min_rating": 2}, marks=pytest.mark.full),
        pytest.param({"split": {"folds": 2, "fold": 1}}, marks=pytest.mark.full),
    ],
    ids=["leave one out", "whole", "fold"],
)
def test_equals_the_slow_preparation(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 300)
    data = of_task(**changes)
    events, titles = messy(tmp_path)
    expected = slow_sessions.prepared(events, titles, data)
    raw = open_dataset(data, 0, [tmp_path / "rows.csv"], [tmp_path / "items.csv"])
    manifest = prepare(data, raw, tmp_path / "data")
    for name in ("train", "valid", "test", "users", "items"):
        file = tmp_path / "data" / f"{name}.parquet"
        assert pq.read_table(file).to_pylist() == expected[name], name
        if name in columns.SPLITS:
            assert pq.read_schema(file) == columns.ROWS_SCHEMA and expected[name]
    check_manifest(manifest, expected, data)


def check_manifest(manifest: dict[str, Any], expected: dict[str, list[dict[str, Any]]], data: DataConfig) -> None:
    steps = {step["step"]: step.get("dropped") for step in manifest["steps"]}
    assert steps["drop exact repeats"] and steps["drop unknown items"]
    assert not data.core or steps[f"keep the {data.core}-core"]
    assert not data.min_rating or steps["drop low ratings"]
    last = manifest["steps"][-1]
    liked = [row["liked"] for row in expected["users"]]
    kept = {item for items in liked for item in items}
    assert (last["rows"], last["users"], last["items"]) == (sum(map(len, liked)), sum(map(bool, liked)), len(kept))
    assert (manifest["task"], manifest["timed"]) == ("next_item", True)
    assert (manifest["users"], manifest["items"]) == (len(expected["users"]), len(expected["items"]))
    for name in columns.SPLITS:
        counts, rows = manifest["splits"][name], expected[name]
        assert (counts["rows"], counts["likes"], counts["users"]) == (len(rows),) * 3
        assert counts["interactions"] == sum(row["seen"] + 1 for row in rows)
        assert counts["warm"] == sum(row["is_warm"] for row in rows)
    train = manifest["splits"]["train"]
    assert manifest["mean_liked_per_training_user"] == train["interactions"] / train["users"]
    read = {item for row in expected["train"] for item in liked[row["user_id"]][: row["seen"] + 1]}
    assert manifest["items_in_training"] == len(read)
    assert manifest["split"].get("leave_one_out", False) == data.split.leave_one_out


@pytest.mark.full
@pytest.mark.usefixtures("ray_local")
def test_the_same_bytes_for_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messy(tmp_path)
    data = of_task(split=WHOLE, core=3)
    raw = open_dataset(data, 0, [tmp_path / "rows.csv"], [tmp_path / "items.csv"])
    large = prepare(data, raw, tmp_path / "large")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 100)
    assert prepare(data, raw, tmp_path / "small") == large


@pytest.mark.full
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core": 99}, "none of 923 rows is left (drop missing values: 0, drop unknown items: "),
        ({"split": {"train": 0.98, "valid": 0.01}}, "the valid set has no session; choose another data.split"),
    ],
)
def test_nothing_left_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    messy(tmp_path)
    data = of_task(**changes)
    with pytest.raises(InputError) as caught:
        prepare(data, open_dataset(data, 0, [tmp_path / "rows.csv"], [tmp_path / "items.csv"]), tmp_path / "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def chains(folder: Path) -> list[str]:
    """Sessions in which an item tells the next; the options that read them."""
    draw, lines = np.random.default_rng(0), ["SessionId,ItemId,Time,Reward"]
    for session in range(300):
        item, day = int(draw.integers(30)), int(draw.integers(1, 28))
        for step in range(int(draw.integers(5, 12))):
            lines.append(f"{session},{item},2020-09-{day:02} 10:00:{step:02}.000,1.0")
            item = (item * 7 + 3) % 30
    (folder / "sessions.csv").write_text("\n".join(lines), encoding="utf-8")
    names = "".join(f'{item},"Thing {item}"\n' for item in range(30))
    (folder / "products.csv").write_text(f"ItemId,Name\n{names}", encoding="utf-8")
    data = {
        "task": "next_item",
        "dataset": "sessions",
        "sources": [str(folder / "sessions.csv")],
        "item_sources": [str(folder / "products.csv")],
        "core": 5,
        "split": {"train": 0.64, "valid": 0.16},
    }
    changes = {"storage": str(folder), "data": data, "cluster.workers": 1, "stages.pretrain_encoder.loss": "softmax"}
    changes |= {"names": {"sources": "tiny", "pooling": "last"}, "ranking.llmseqsim.width": 16}
    return [option for key, value in changes.items() for option in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_an_encoder_learns_what_follows(job_env: dict[str, str], tmp_path: Path) -> None:
    options = ["--config", "configs/smoke.yaml", *chains(tmp_path)]
    plan = processes.run(processes.job("prepare", *options, "--plan"), job_env, tmp_path / "plan").checked()
    assert "192 training rows, 30 items" in plan.out
    processes.run(processes.job("train_stage", "pretrain_encoder", *options), job_env, tmp_path / "log").checked()
    progress = tmp_path / "smoke" / "stages" / "pretrain_encoder" / "progress.jsonl"
    losses = [json.loads(line)["loss"] for line in progress.read_text().splitlines()]
    assert len(losses) == 30 and losses[0] == pytest.approx(math.log(30), abs=0.3)  # nothing known: all items alike
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    manifest = json.loads((tmp_path / "smoke" / "data" / "manifest.json").read_text())
    assert manifest["dataset"] == "sessions" and manifest["timed"] and not manifest["untitled"]
    assert (tmp_path / "smoke" / "parts" / "pretrain_encoder" / "encoder" / "model.safetensors").is_file()
