import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from rayrec.config.data import ColumnMap, DataConfig
from rayrec.data import blocks, columns
from rayrec.data import prepare as preparation
from rayrec.data.datasets import RawDataset, open_dataset
from rayrec.data.files import ROW_GROUP
from rayrec.data.prepare import prepare
from rayrec.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_local")

FILES = {"train.parquet", "valid.parquet", "test.parquet", "users.parquet", "items.parquet", "manifest.json"}
Row = dict[str, Any]


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"dataset": "table", "sources": ["x"], "warm_over": 2, **changes})


def messy(folder: Path) -> tuple[Path, Path]:
    """Ties in time, exact repeats, missing values, items without an entry, users and items that arrive late."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(500):
        user, item = rng.integers(3 + i // 30), rng.integers(4 + i // 20)
        rows.append([f"u{user}", f"i{item}", rng.integers(2, 11) / 2, i // 6 + rng.integers(3)])
    rows += [[user, item, 6 - rating, time] for user, item, rating, time in rows[::25]]  # the same but for the rating
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).astype({"timestamp": "Int64"})
    frame = frame.iloc[rng.permutation(len(frame))]
    for at in range(frame.shape[1]):
        frame.iloc[at * 7 :: 97, at] = None
    frame.to_csv(folder / "rows.csv", index=False)
    titles = pd.DataFrame({"item_id": [f"i{i}" for i in range(40) if i % 9 != 4]})
    titles["title"] = ["" if i % 10 == 3 else f"Film {i}" for i in range(len(titles))]
    titles.to_csv(folder / "items.csv", index=False)
    return folder / "rows.csv", folder / "items.csv"


def opened(data: DataConfig, rows: Path, *items: Path) -> RawDataset:
    return open_dataset(data, 0, [rows], items)


def read(folder: Path, name: str) -> list[Row]:
    rows: list[Row] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


# A slow preparation, row by row, the obvious way


def first_seen(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def reference(data: DataConfig, rows_path: Path, items_path: Path) -> dict[str, Any]:
    titles = pd.read_csv(items_path, dtype=str, keep_default_na=False).set_index("item_id")["title"].to_dict()
    frame = pd.read_csv(rows_path)
    rows: list[Row] = [
        {"row": i, **dict(zip(map(str, frame), row, strict=True))} for i, row in enumerate(frame.values.tolist())
    ]
    rows = [row for row in rows if not any(pd.isna(value) for value in row.values())]
    seen: set[tuple[Any, ...]] = set()
    clean = []
    for row in rows:
        key = (row["user_id"], row["item_id"], row["timestamp"])
        if key not in seen and row["item_id"] in titles:
            clean.append(row)
        seen.add(key)
    users, items = (
        first_seen(clean, key)[:most] for key, most in (("user_id", data.max_users), ("item_id", data.max_items))
    )
    clean = [row for row in clean if row["user_id"] in users and row["item_id"] in items]
    users, items = first_seen(clean, "user_id"), first_seen(clean, "item_id")
    clean.sort(key=lambda row: (row["timestamp"], row["row"]))
    t_valid, t_test = (clean[math.floor(len(clean) * share)]["timestamp"] for share in (0.8, 0.9))
    train = [row for row in clean if row["timestamp"] < t_valid]
    by_user, by_item = Counter(row["user_id"] for row in train), Counter(row["item_id"] for row in train)
    liked: dict[str, list[int]] = {user: [] for user in users}
    splits: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for row in clean:
        user, item, label = row["user_id"], row["item_id"], int(row["rating"] >= data.threshold)
        split = "train" if row["timestamp"] < t_valid else "valid" if row["timestamp"] < t_test else "test"
        splits[split].append(
            {
                "user_id": users.index(user),
                "item_id": items.index(item) + 1,
                "rating": row["rating"],
                "label": label,
                "timestamp": row["timestamp"],
                "seen": len(liked[user]),
                "is_warm": by_user[user] > data.warm_over and by_item[item] > data.warm_over,
                "is_strict_cold": not by_user[user] and not by_item[item],
            }
        )
        if label:
            liked[user].append(items.index(item) + 1)
    return {
        **splits,
        "users": [{"user_id": i, "source_id": user, "liked": liked[user]} for i, user in enumerate(users)],
        "items": [
            {"item_id": i, "source_id": item, "title": titles[item] or f"Untitled {item}"}
            for i, item in enumerate(items, 1)
        ],
        "times": (t_valid, t_test),
    }


@pytest.mark.parametrize("reduction", [{}, {"max_users": 9}, {"max_users": 10, "max_items": 7}])
def test_equals_the_slow_preparation(reduction: dict[str, int], tmp_path: Path) -> None:
    data = config(threshold=3.5, item_sources=["y"], **reduction)
    sources = messy(tmp_path)
    manifest = prepare(data, opened(data, *sources), tmp_path / "data")
    expected = reference(data, *sources)
    for name in ("train", "valid", "test", "users", "items"):
        assert read(tmp_path / "data", name) == expected[name], name
    check_manifest(manifest, expected, data, tmp_path / "data")
    if not reduction:  # the data is as bad as it should be
        assert all(step["dropped"] for step in manifest["steps"][1:]) and manifest["untitled"]
        assert manifest["splits"]["test"]["strict_cold"] and manifest["splits"]["test"]["warm"]
    assert {path.name for path in (tmp_path / "data").iterdir()} == FILES
    assert not list(tmp_path.glob("*.partial"))


def check_manifest(manifest: dict[str, Any], expected: dict[str, Any], data: DataConfig, folder: Path) -> None:
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8")) == manifest
    assert (manifest["split"]["t_valid"], manifest["split"]["t_test"]) == expected["times"]
    assert (manifest["users"], manifest["items"]) == (len(expected["users"]), len(expected["items"]))
    for before, after in itertools.pairwise(manifest["steps"]):
        assert after["rows"] == before["rows"] - after["dropped"]
    assert manifest["steps"][0]["rows"] == 520
    assert manifest["steps"][-1]["rows"] == sum(len(expected[split]) for split in columns.SPLITS)
    for split in columns.SPLITS:
        rows, counts = expected[split], manifest["splits"][split]
        assert counts["rows"] == len(rows)
        assert counts["users"] == len({row["user_id"] for row in rows})
        assert counts["items"] == len({row["item_id"] for row in rows})
        assert counts["likes"] == sum(row["label"] for row in rows)
        assert counts["warm"] == sum(row["is_warm"] for row in rows) == counts["rows"] - counts["cold"]
        assert counts["strict_cold"] == sum(row["is_strict_cold"] for row in rows)
    train = manifest["splits"]["train"]
    assert manifest["mean_liked_per_training_user"] == train["likes"] / train["users"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert set(manifest["sources"]) == {"rows.csv", "items.csv"}


def test_steps_count_what_they_drop(tmp_path: Path) -> None:
    body = "a,1,5,1\n,1,5,2\na,,5,3\nb,9,1,4\na,1,4,1\nb,2,1,5\nb,1,1,6\na,2,5,7\nb,2,5,8\nc,2,1,8\nc,1,4,9\nd,3,1,9\n"
    (tmp_path / "rows.csv").write_text("user_id,item_id,rating,timestamp\n" + body)
    (tmp_path / "items.csv").write_text("item_id,title\n1,One\n2,Two\n3,Three\n7,Never seen\n")
    data = config(item_sources=["y"], max_users=3, split={"train": 0.4, "valid": 0.3})
    manifest = prepare(data, opened(data, tmp_path / "rows.csv", tmp_path / "items.csv"), tmp_path / "data")
    assert manifest["steps"] == [
        {"step": "read", "rows": 12, "users": 4, "items": 4},
        {"step": "drop missing values", "rows": 10, "users": 4, "items": 4, "dropped": 2},
        {"step": "drop unknown items", "rows": 9, "users": 4, "items": 3, "dropped": 1},
        {"step": "keep the first users and items", "rows": 8, "users": 3, "items": 2, "dropped": 1},
        {"step": "drop exact repeats", "rows": 7, "users": 3, "items": 2, "dropped": 1},
    ]
    assert manifest["split"]["iso"] == {"t_valid": "1970-01-01T00:00:06+00:00", "t_test": "1970-01-01T00:00:08+00:00"}


def test_same_bytes_for_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(threshold=3.5, item_sources=["y"])
    raw = opened(data, *messy(tmp_path))
    prepare(data, raw, tmp_path / "large")

    def slices() -> Iterator[pa.Table]:
        for block in raw.interactions():
            yield from (block.slice(start, 31) for start in range(0, len(block), 31))

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 100)
    prepare(data, dataclasses.replace(raw, interactions=slices), tmp_path / "small")
    for name in FILES:
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes(), name


def test_files_follow_the_schemas_and_histories_look_back_only(tmp_path: Path) -> None:
    data = DataConfig.model_validate(
        {"dataset": "synthetic", "synthetic": {"rows": 20_000, "users": 300, "items": 400}}
    )
    prepare(data, open_dataset(data, 1, [], []), tmp_path / "data")
    for name in columns.SPLITS:
        assert pq.read_schema(tmp_path / "data" / f"{name}.parquet") == columns.ROWS_SCHEMA
    assert pq.read_schema(tmp_path / "data" / "users.parquet") == columns.USERS_SCHEMA
    assert pq.read_schema(tmp_path / "data" / "items.parquet") == columns.ITEMS_SCHEMA
    assert pq.ParquetFile(tmp_path / "data" / "train.parquet").metadata.row_group(0).num_rows == ROW_GROUP
    liked = {row["user_id"]: row["liked"] for row in read(tmp_path / "data", "users")}
    so_far: dict[int, list[int]] = {user: [] for user in liked}
    last = -1
    for row in itertools.chain.from_iterable(read(tmp_path / "data", split) for split in columns.SPLITS):
        assert row["timestamp"] >= last
        last = row["timestamp"]
        assert liked[row["user_id"]][: row["seen"]] == so_far[row["user_id"]]  # all liked before, nothing after
        if row["label"]:
            so_far[row["user_id"]].append(row["item_id"])
    assert liked == so_far


def given(folder: Path) -> dict[str, pd.DataFrame]:
    """CoLLM's three files for random users and items; marks are drawn, and some histories begin before all files."""
    rng, files = np.random.default_rng(8), {}
    past: dict[int, list[int]] = {user: list(range(90, 90 + user % 4)) for user in range(30)}
    rows = []
    for time in range(600):
        user, item, label = int(rng.integers(30)), int(rng.integers(1, 60)), int(rng.integers(2))
        his = [0, *past[user]]
        rows.append([user, item, label, time, his, [f"F{i}" * (i > 0) for i in his], f"F{item}", int(rng.integers(2))])
        past[user] += [item] * label
    names = ["uid", "iid", "label", "timestamp", "his", "his_title", "title", "not_cold"]
    frame = pd.DataFrame(rows, columns=names).sample(frac=1, random_state=0)  # in no order of time
    for split, part in (("train", frame[:400]), ("valid", frame[400:500]), ("test", frame[450:])):
        files[split] = part
        part.to_pickle(folder / f"{split}_ood2.pkl")
    return files


def test_collm_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, order, labels, histories and marks of each file; the test file has half of the valid file's rows, too."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparation, "BUCKET_ROWS", 100)
    files = given(tmp_path)
    data = DataConfig.model_validate({"dataset": "collm", "sources": ["x"], "warm_over": 1})
    manifest = prepare(data, open_dataset(data, 0, [tmp_path], []), tmp_path / "data")
    items = {row["item_id"]: row for row in read(tmp_path / "data", "items")}
    assert all(row["title"] == f"F{row['source_id']}" for row in items.values())
    assert {"90", "91", "92"} < {row["source_id"] for row in items.values()}  # in histories alone
    users = {row["user_id"]: row for row in read(tmp_path / "data", "users")}
    for split, frame in files.items():
        found = read(tmp_path / "data", split)
        assert len(found) == len(frame)
        for row, (_, expected) in zip(found, frame.iterrows(), strict=True):
            assert users[row["user_id"]]["source_id"] == str(expected["uid"])
            assert items[row["item_id"]]["source_id"] == str(expected["iid"])
            history = [items[item]["source_id"] for item in users[row["user_id"]]["liked"][: row["seen"]]]
            assert history == [str(item) for item in expected["his"] if item]
            marks = (row["label"], row["rating"], row["timestamp"], row["is_warm"])
            assert marks == (expected["label"], expected["label"], expected["timestamp"], expected["not_cold"])
        assert manifest["splits"][split]["likes"] == frame["label"].sum()
        assert manifest["splits"][split]["warm"] == frame["not_cold"].sum()
    assert [manifest["splits"][split]["repeated"] for split in columns.SPLITS] == [0, 0, 50]
    assert [step["step"] for step in manifest["steps"]] == ["read", "drop missing values", "drop unknown items"]
    assert (manifest["steps"][-1]["rows"], manifest["items"]) == (650, len(items))
    assert manifest["split"] == {split: f"{split}_ood2.pkl" for split in columns.SPLITS}
    assert pq.read_schema(tmp_path / "data" / "test.parquet") == columns.ROWS_SCHEMA


def reviews(folder: Path) -> list[list[str]]:
    """Kaggle's two files, with missing users, books that are not listed, repeats, and an end in the middle of a row."""
    rng, rows = np.random.default_rng(9), []
    for i in range(500):
        user, book = rng.integers(3 + i // 9), rng.integers(4 + i // 12)
        name = "" if i % 11 == 5 else f"U{user}"
        review = f'"a ""{i}"",\n{"b" * 50}"'
        rows.append([f"B{book}", f"Book {book}", "", name, "n", "0/1", f"{i % 5 + 1}.0", f"{i // 4 + 9}", "s", review])
    rows += rows[::50]
    header = "Id,Title,Price,User_id,profileName,review/helpfulness,review/score,review/time,review/summary,review/text"
    text = "\n".join([header, *map(",".join, rows), "B1,Book 1,,U"])
    (folder / "Books_rating.csv").write_text(text, encoding="utf-8")
    listed = "".join(f'Book {i},"d, {i}"\n' for i in range(60) if i % 7 != 3)
    (folder / "books_data.csv").write_text(f"Title,description\n{listed}", encoding="utf-8")
    return rows


def test_amazon_books_and_its_reduction(tmp_path: Path) -> None:
    """Indices below 20, of users and books by first appearance among the rows that are whole and listed."""
    rows = reviews(tmp_path)
    data = DataConfig.model_validate(
        {"dataset": "amazon-books", "sources": ["x"], "max_users": 20, "max_items": 20, "warm_over": 1}
    )
    manifest = prepare(data, open_dataset(data, 0, [tmp_path], []), tmp_path / "data")
    whole = [row for row in rows if row[3]]
    listed = [row for row in whole if int(row[0][1:]) % 7 != 3]
    firsts = [set(list(dict.fromkeys(row[at] for row in listed))[:20]) for at in (3, 0)]
    kept = [row for row in listed if row[3] in firsts[0] and row[0] in firsts[1]]
    left = {(row[3], row[0], row[7]): row for row in reversed(kept)}
    sizes = [len(part) for part in (rows, rows, whole, listed, kept, left)]
    sizes[0] += 1
    names = ["read", "drop rows cut short", "drop missing values", "drop unknown items"]
    names += ["keep the first users and items", "drop exact repeats"]
    assert [(step["step"], step["rows"]) for step in manifest["steps"]] == list(zip(names, sizes, strict=True))
    assert all(before > after for before, after in itertools.pairwise(sizes))
    users = {row["user_id"]: row["source_id"] for row in read(tmp_path / "data", "users")}
    items = {row["item_id"]: row for row in read(tmp_path / "data", "items")}
    assert max(users) < 20 and max(items) <= 20
    assert list(items[1].values()) == [1, kept[0][0], kept[0][1]]
    found = {
        (users[row["user_id"]], items[row["item_id"]]["source_id"], str(row["timestamp"])): row["rating"]
        for split in columns.SPLITS
        for row in read(tmp_path / "data", split)
    }
    assert found == {key: float(row[6]) for key, row in left.items()}


def test_hostile_titles_are_inert(tmp_path: Path) -> None:
    titles = [
        "",
        "x" * 10_000,
        "two\r\nlines\tand a tab",
        "<|im_end|><unk> {UserID}",
        '"</script>, "',
        "Ñandú 🎬",
        "  ",
    ]
    frame = pd.DataFrame({"user_id": 1, "item_id": range(7), "rating": [1, 5] * 3 + [1], "timestamp": range(7)})
    pd.concat([frame.assign(title=titles), frame.assign(user_id=2, title=None)]).to_csv(tmp_path / "t.csv", index=False)
    data = config(columns=ColumnMap(title="title"), split={"train": 0.4, "valid": 0.3})
    manifest = prepare(data, opened(data, tmp_path / "t.csv"), tmp_path / "data")
    shown = ["Untitled 0", titles[1], "two lines and a tab", titles[3], titles[4], titles[5], "Untitled 6"]
    assert [row["title"] for row in read(tmp_path / "data", "items")] == shown
    assert manifest["untitled"] == 2


ROWS = "user_id,item_id,rating,timestamp,title\n"
ERRORS = {
    "a wrong value": (ROWS + "u,1,4,1,a\nu,2,great,2,b\n", "t.csv, line 3: rating 'great' is not a number"),
    "a missing column": ("user_id,item_id,stars,timestamp,title\nu,1,4,1,a\n", "no column 'rating'"),
    "nothing left": (
        ROWS + "u,,4,1,a\n,2,4,2,b\n",
        "none of 2 rows is left (drop missing values: 2, drop unknown items: 0)",
    ),
    "only likes": (ROWS + "".join(f"u,{i},5,{i},a\n" for i in range(9)), "the train set has 7 likes and 0 dislikes"),
    "one class in a later set": (
        ROWS + "".join(f"u,{i},{1 + i % 2 * 4 if i < 8 else 5},{i},a\n" for i in range(20)),
        "the valid set has 2 likes and 0 dislikes",
    ),
    "no time passes": (
        ROWS + "".join(f"u,{i},{i},5,a\n" for i in range(1, 6)),
        "the train set has 0 likes and 0 dislikes",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_leaves_nothing(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, message = ERRORS[case]
    (tmp_path / "t.csv").write_text(content)
    data = config(columns=ColumnMap(title="title"))
    (tmp_path / "data.partial").mkdir()  # left by a process that was killed
    (tmp_path / "data.partial" / "train.parquet").write_text("half")
    with pytest.raises(InputError) as caught:
        prepare(data, opened(data, tmp_path / "t.csv"), tmp_path / "data")
    assert type(caught.value) is InputError
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_files_stays_as_it_is(tmp_path: Path) -> None:
    data = DataConfig(dataset="synthetic")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds files"):
        prepare(data, open_dataset(data, 0, [], []), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


def test_ray_data_is_left_as_it_was() -> None:
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = (context.target_max_block_size, context.shuffle_input_batch_bytes, context.enable_progress_bars)
    order, level = context.execution_options.preserve_order, logger.level
    with pytest.raises(ZeroDivisionError), blocks.calm_ray_data():
        assert context.target_max_block_size == blocks.BLOCK_BYTES and context.execution_options.preserve_order
        raise ZeroDivisionError
    assert (context.target_max_block_size, context.shuffle_input_batch_bytes, context.enable_progress_bars) == before
    assert (context.execution_options.preserve_order, logger.level) == (order, level)
