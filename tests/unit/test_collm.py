"""CoLLM's files: what they give is kept as it is."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayrec.config.data import DataConfig, SplitFilesConfig
from rayrec.data import columns as c
from rayrec.data.datasets import RawDataset, collm, open_dataset
from rayrec.data.histories import Bounds, Training, Vocabulary, annotate, cut, encode, given_histories
from rayrec.data.survey import Rule, Survey, fold_titles, sightings
from rayrec.errors import InputError
from rayrec.settings import load

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("RAYREC_DATA_ROOT", ROOT.parent / "shared" / "data")) / "collm-ml-1m"
SMALL = {"valid": "valid_small_ood2.pkl", "test": "valid_ood2.pkl"}
Frames = dict[str, dict[str, list[Any]]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))


def small() -> Frames:
    """User 7 in all files, user 8 in the later ones. Item 9 was liked in rows that are in no file."""
    return {
        "train_ood2": {
            "uid": [7, 7, 7],
            "iid": [3, 1, 2],
            "label": [1, 0, 1],
            "timestamp": [10, 11, 12],
            "his": [[0], [0, 3], [0, 3]],
            "his_title": [[""], ["", "Three"], ["", "Three"]],
            "title": ["Three", "One", "Two"],
        },
        "valid_ood2": {
            "uid": [8, 7],
            "iid": [1, 4],
            "label": [0, 1],
            "timestamp": [20, 21],
            "his": [[0], [0, 3, 2]],
            "his_title": [[""], ["", "Three", "Two"]],
            "title": ["One", "Four"],
            "not_cold": [1, 0],
        },
        "test_ood2": {
            "uid": [8, 7, 8],
            "iid": [4, 1, 4],
            "label": [1, 0, 1],
            "timestamp": [30, 31, 30],
            "his": [[0, 9], [0, 3, 2, 4], [0, 9]],
            "his_title": [["", "Nine"], ["", "Three", "Two", "Four"], ["", "Nine"]],
            "title": ["Four", None, "Four"],
            "not_cold": [0.0, np.nan, 1.0],
        },
    }


def written(folder: Path, frames: Frames) -> Path:
    for name, columns in frames.items():
        frame = pd.DataFrame({key: pd.Series(value) for key, value in columns.items()})
        frame.sample(frac=1, random_state=0).sort_index().to_pickle(folder / f"{name}.pkl")
    return folder


def opened(folder: Path, **files: str) -> RawDataset:
    data = DataConfig(dataset="collm", sources=("x",), split_files=SplitFilesConfig(**files))
    return open_dataset(data, 0, [folder], [])


def rows(raw: RawDataset) -> pa.Table:
    table = pa.concat_tables(raw.interactions())
    assert table.schema == c.GIVEN_SCHEMA
    return table


def prepared(raw: RawDataset, warm_over: int = 0) -> tuple[dict[str, list[dict[str, Any]]], pa.Table, Vocabulary]:
    """The rows of each set, the users with LIKED, and the ids: what ``prepare`` does between its shuffles."""
    titles = fold_titles(raw.items())
    blocks = list(raw.interactions())
    rule = Rule(titles[c.ITEM_ID].combine_chunks())
    survey = Survey((sightings(block, rule) for block in blocks), reduced=False)
    vocabulary = Vocabulary(survey.users, survey.items, 1)
    assert raw.split is not None
    whole = given_histories(pa.concat_tables([encode(block, vocabulary) for block in blocks]), raw.split)
    bounds = Bounds(c.ROW, raw.split.starts)
    ordered = whole.sort_by(c.ROW)
    training = ordered.filter(pc.less(ordered[c.ROW], bounds.starts[0]))
    sizes = {c.USER_ID: len(survey.users), c.ITEM_ID: len(survey.items) + 1}
    counts = [np.bincount(training[name].to_numpy(), minlength=size) for name, size in sizes.items()]
    marked = annotate(ordered.drop_columns([c.LIKED]), Training(counts[0], counts[1], warm_over))
    users = whole.filter(pc.is_valid(whole[c.LIKED])).select([c.USER_ID, c.LIKED])
    return {split: piece.to_pylist() for split, piece in cut(marked, bounds)}, users, vocabulary


# Reading


def test_rows_titles_and_the_split(tmp_path: Path) -> None:
    raw = opened(written(tmp_path, small()))
    found = rows(raw)
    assert found[c.USER_ID].to_pylist() == ["7", "7", "7", "8", "7", "8", "7", "8"]
    assert found[c.ITEM_ID].to_pylist() == ["3", "1", "2", "1", "4", "4", "1", "4"]
    assert found[c.RATING].to_pylist() == [1, 0, 1, 0, 1, 1, 0, 1]
    assert found[c.TIMESTAMP].to_pylist() == [10, 11, 12, 20, 21, 30, 31, 30]
    assert found[c.ROW].to_pylist() == list(range(8))
    histories = [[], ["3"], ["3"], [], ["3", "2"], ["9"], ["3", "2", "4"], ["9"]]
    assert found[c.HISTORY].to_pylist() == histories
    assert found[c.IS_WARM].to_pylist() == [None, None, None, True, False, False, None, True]
    titles = fold_titles(raw.items()).to_pylist()
    assert {row[c.ITEM_ID]: row[c.TITLE] for row in titles} == dict(
        zip("31249", ["Three", "One", "Two", "Four", "Nine"], strict=True)
    )
    assert raw.split is not None and raw.split.starts == (3, 5)
    assert raw.split.names() == {split: f"{split}_ood2.pkl" for split in c.SPLITS}
    assert [raw.split.where(row) for row in (0, 2, 3, 7)] == [
        f"{tmp_path}/{place}"
        for place in ("train_ood2.pkl, row 1", "train_ood2.pkl, row 3", "valid_ood2.pkl, row 1", "test_ood2.pkl, row 3")
    ]
    assert set(raw.sha256) == {f"{split}_ood2.pkl" for split in c.SPLITS}
    again = pickle.loads(pickle.dumps(raw))  # as Ray does it
    assert rows(again) == found


def test_a_pickle_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, small())
    found = rows(opened(folder))
    monkeypatch.setattr(collm, "read_frame", None)
    assert rows(opened(folder)) == found


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, small())
    found = rows(opened(folder))
    monkeypatch.setattr(collm, "_BLOCK_ROWS", 2)
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "another"))
    assert rows(opened(folder)).to_pylist() == found.to_pylist()


def test_another_file_stands_in(tmp_path: Path) -> None:
    frames = small()
    frames["valid_small_ood2"] = {key: value[:1] for key, value in frames["valid_ood2"].items()}
    del frames["test_ood2"]
    with pytest.raises(InputError) as caught:
        opened(written(tmp_path, frames))
    assert str(caught.value) == (
        f"{tmp_path}: no test_ood2.pkl, which data.split_files.test names; found train_ood2.pkl, valid_ood2.pkl,"
        " valid_small_ood2.pkl; another file may stand in for it: --set data.split_files.test=NAME"
    )
    raw = opened(tmp_path, **SMALL)
    assert raw.split is not None and raw.split.starts == (3, 4)
    splits, _, _ = prepared(raw)
    assert [row["repeated"] for row in splits["valid"]] == [False]
    assert [row["repeated"] for row in splits["test"]] == [True, False]


# Ids, histories and marks


def test_histories_marks_and_labels_are_the_files(tmp_path: Path) -> None:
    raw = opened(written(tmp_path, small()))
    splits, users, ids = prepared(raw)
    assert ids.users.to_pylist() == ["7", "8"]
    assert ids.items.to_pylist() == ["3", "1", "2", "4", "9"]  # by first appearance; 9 in a history alone
    liked = {row[c.USER_ID]: row[c.LIKED] for row in users.to_pylist()}
    assert liked == {0: [1, 3, 4], 1: [5]}
    assert [len(splits[split]) for split in c.SPLITS] == [3, 2, 3]
    found = [row for split in c.SPLITS for row in splits[split]]
    histories = [[ids.items[item - 1].as_py() for item in liked[row[c.USER_ID]][: row[c.SEEN]]] for row in found]
    assert histories == rows(raw)[c.HISTORY].to_pylist()
    assert [row[c.LABEL] for row in found] == [1, 0, 1, 0, 1, 1, 0, 1]
    # Where a file says nothing: more than 0 training rows of user and item. User 8 and item 4 have none.
    assert [row[c.IS_WARM] for row in found] == [True, True, True, True, False, False, True, True]
    assert [row[c.IS_STRICT_COLD] for row in found] == [False, False, False, False, False, True, False, True]
    assert [row[c.REPEATED] for row in found] == [False] * 7 + [True]


def test_a_history_that_is_no_beginning_is_named(tmp_path: Path) -> None:
    frames = small()
    frames["valid_ood2"]["his"][1] = [0, 2, 3]
    with pytest.raises(InputError) as caught:
        prepared(opened(written(tmp_path, frames)))
    assert str(caught.value) == (
        f"{tmp_path}/valid_ood2.pkl, row 2: his is not the beginning of this user's longest history"
        f" ({tmp_path}/test_ood2.pkl, row 2); such histories cannot be kept"
    )


def test_rows_without_a_value_are_dropped_and_counted(tmp_path: Path) -> None:
    frames = small()
    frames["train_ood2"]["uid"] = [7.0, np.nan, 7.0]
    frames["test_ood2"]["label"] = [1.0, np.nan, 1.0]
    raw = opened(written(tmp_path, frames))
    rule = Rule(fold_titles(raw.items())[c.ITEM_ID].combine_chunks())
    steps = Survey((sightings(block, rule) for block in raw.interactions()), reduced=False).steps
    assert [(step["rows"], step.get("dropped")) for step in steps] == [(8, None), (6, 2), (6, 0)]
    splits, users, _ = prepared(raw)
    assert [len(splits[split]) for split in c.SPLITS] == [2, 2, 2]
    assert users.to_pylist()[0][c.LIKED] == [1, 2]  # the longest of the rows that stay


def test_any_histories_against_a_slow_loop(tmp_path: Path) -> None:
    """Random users and items in many blocks: ids by first appearance, histories row by row."""
    rng = np.random.default_rng(3)
    frames: Frames = {f"{split}_ood2": {key: [] for key in small()["test_ood2"]} for split in c.SPLITS}
    past: dict[int, list[int]] = {}
    for i in range(400):
        user, item, label = int(rng.integers(20)), int(rng.integers(1, 60)), int(rng.integers(2))
        his = past.setdefault(user, [])
        row = {
            "uid": user,
            "iid": item,
            "label": label,
            "timestamp": i,
            "his": [0, *his],
            "his_title": ["", *(f"F{other}" for other in his)],
            "title": f"F{item}",
            "not_cold": int(rng.integers(2)),
        }
        his += [item] * label
        for key, value in row.items():
            frames[f"{c.SPLITS[i // 150]}_ood2"][key].append(value)
    raw = opened(written(tmp_path, frames))
    splits, users, ids = prepared(raw)
    liked = {row[c.USER_ID]: row[c.LIKED] for row in users.to_pylist()}
    for split in c.SPLITS:
        given = frames[f"{split}_ood2"]
        assert len(splits[split]) == len(given["uid"])
        for at, row in enumerate(splits[split]):
            assert ids.users[row[c.USER_ID]].as_py() == str(given["uid"][at])
            assert ids.items[row[c.ITEM_ID] - 1].as_py() == str(given["iid"][at])
            history = [int(ids.items[item - 1].as_py()) for item in liked[row[c.USER_ID]][: row[c.SEEN]]]
            assert [0, *history] == given["his"][at]
            assert (row[c.LABEL], row[c.IS_WARM]) == (given["label"][at], bool(given["not_cold"][at]))
    order = [item for frame in frames.values() for item in frame["iid"]]
    assert ids.items.to_pylist() == list(dict.fromkeys(map(str, order)))


# The real files


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set RAYREC_DATA_ROOT")
def test_the_real_files(tmp_path: Path) -> None:
    """Rows, users, items, labels and warm rows as their authors count them; histories as pandas reads them."""
    raw = opened(REAL, **SMALL)
    splits, users, ids = prepared(raw)
    expected = {
        "train": (33_891, 740, 3_087, 0.537, 33_891),
        "valid": (5_200, 331, 1_985, 0.531, 3_300),
        "test": (10_401, 356, 2_506, 0.528, 6_609),
    }
    for split, found in splits.items():
        seen = (len({row[name] for row in found}) for name in (c.USER_ID, c.ITEM_ID))
        likes, warm = (sum(row[name] for row in found) for name in (c.LABEL, c.IS_WARM))
        assert (len(found), *seen, round(likes / len(found), 3), warm) == expected[split]
    assert sum(row[c.REPEATED] for row in splits["test"]) == 5_200  # valid_small is a part of valid
    titles = {row[c.ITEM_ID]: row[c.TITLE] for row in fold_titles(raw.items()).to_pylist()}
    assert len(titles) == len(ids.items) == 3_199
    assert titles["1"] == "Shawshank Redemption, The (1994)"
    liked = {row[c.USER_ID]: row[c.LIKED] for row in users.to_pylist()}
    items = [0, *map(int, ids.items.to_pylist())]
    frame = pd.read_pickle(REAL / SMALL["valid"])  # which asks for a frame and its arrays alone, as was seen above
    for row, iid, his, time in zip(splits["valid"], frame["iid"], frame["his"], frame["timestamp"], strict=True):
        assert [items[item] for item in liked[row[c.USER_ID]][: row[c.SEEN]]] == [item for item in his if item]
        assert (items[row[c.ITEM_ID]], row[c.TIMESTAMP]) == (iid, time)


# Errors


def changed(split: str, key: str, value: Any) -> Callable[[Frames], object]:
    """The second row of a file differs."""
    return lambda frames: frames[f"{split}_ood2"][key].__setitem__(1, value)


def without(split: str, key: str) -> Callable[[Frames], object]:
    return lambda frames: frames[f"{split}_ood2"].pop(key)


ERRORS: dict[str, tuple[Callable[[Frames], object], str]] = {
    "no column": (without("test", "his"), "test_ood2.pkl: no column 'his'; found: uid, iid, label"),
    "no rows": (lambda f: [v.clear() for v in f["valid_ood2"].values()], "valid_ood2.pkl: no rows in this file"),
    "a label of its own": (changed("valid", "label", 2), "valid_ood2.pkl, row 2: label 2 is neither 0 nor 1"),
    "a mark of its own": (changed("valid", "not_cold", 3), "valid_ood2.pkl, row 2: not_cold 3 is neither 0 nor 1"),
    "an item that is padding": (changed("train", "iid", 0), "train_ood2.pkl, row 2: iid 0 is no item"),
    "a negative time": (changed("train", "timestamp", -4), "train_ood2.pkl, row 2: timestamp -4 is before 1970"),
    "ids in words": (changed("train", "uid", "u"), "train_ood2.pkl: column 'uid' does not hold numbers"),
    "a title that is a list": (changed("train", "title", ["x"]), "train_ood2.pkl, row 2: title is no text"),
    "a history that is none": (changed("train", "his", 5), "train_ood2.pkl, row 2: his is no list"),
    "a history of text": (changed("train", "his", ["3", "4"]), "row 2: his holds something else than whole numbers"),
    "a history of lists": (changed("train", "his", [[3], [4]]), "row 2: his holds something else than whole numbers"),
    "titles of numbers": (changed("train", "his_title", [1, 2]), "row 2: his_title holds something else than text"),
    "a padding within": (changed("valid", "his", [0, 3, 0]), "row 2: his holds no item behind an item"),
    "a negative item": (changed("valid", "his", [0, 3, -2]), "row 2: his holds no item behind an item"),
    "a vast item": (changed("valid", "his", [0, 3, 2**70]), "valid_ood2.pkl: his holds a number beyond 64 bits"),
    "a title too few": (changed("valid", "his_title", ["", "x"]), "row 2: his and his_title differ in length"),
    "a title that is no text": (changed("valid", "title", "\ud800"), "valid_ood2.pkl: a title is not UTF-8"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_input_is_one_line(case: str, tmp_path: Path) -> None:
    change, message = ERRORS[case]
    frames = small()
    change(frames)
    with pytest.raises(InputError) as caught:
        opened(objects(tmp_path, frames))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.parquet")) or "train" not in message


def objects(folder: Path, frames: Frames) -> Path:
    """As ``written``, with text as objects: pandas' own text refuses half a character."""
    for name, columns in frames.items():
        text = {"title", "his", "his_title"}
        frame = {key: pd.Series(value, dtype=object if key in text else None) for key, value in columns.items()}
        pd.DataFrame(frame).to_pickle(folder / f"{name}.pkl")
    return folder


@pytest.mark.parametrize(("key", "values"), [("his", list(range(1, 60))), ("his_title", ["x" * 50] * 59)])
def test_a_list_that_rows_share_does_not_grow(
    key: str, values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bytes a row may point at one long list; what it would come to is counted first."""
    monkeypatch.setattr(collm, "_MOST", 5 * 59 - 1)
    frames = small()
    train = frames["train_ood2"]
    for name in train:
        train[name] = train[name][:1] * 5
    train[key] = [values] * 5
    with pytest.raises(InputError, match=f"train_ood2.pkl: {key} holds more than 294 entries all together"):
        opened(written(tmp_path, frames))


def test_titles_that_items_share_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collm, "_MOST", 1000)
    frames = small()
    frames["train_ood2"]["title"] = ["x" * 400] * 3
    with pytest.raises(InputError, match="its titles hold more than 1000 characters"):
        opened(written(tmp_path, frames))


# Configuration


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.dataset=collm"], "dataset 'collm' needs data.sources: the path or URI of your folder"),
        (["data.split={train: .7, valid: .2}"], "split: dataset 'collm' comes split, labelled and whole"),
        (["data.threshold=3"], "leave data.threshold out"),
        (["data.rating_range=[0, 10]"], "leave data.rating_range out"),
        (["data.max_users=40"], "leave data.max_users out"),
        (["data.max_items=40"], "leave data.max_items out"),
        (["data.split_files.test=valid_ood2.pkl"], "a file serves as two sets; name three different files"),
        (["data.dataset=ml-1m", "data.split_files.test=x.pkl"], "dataset 'ml-1m' is split by time"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    given = ["data.dataset=collm", "data.sources=[x]"] if "data.dataset" not in overrides[0] else []
    with pytest.raises(InputError) as caught:
        load(None, [*given, *overrides])
    assert message in str(caught.value)
    assert load(None, ["data.dataset=collm", "data.sources=[x]"]).data.split_files.test == "test_ood2.pkl"
