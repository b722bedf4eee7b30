"""Where forward-chained folds are cut: against scikit-learn, by hand, and row by row on rows full of ties."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from sklearn.model_selection import TimeSeriesSplit

from rayrec import cli
from rayrec.config import Config, identity
from rayrec.config.data import DataConfig, SplitConfig
from rayrec.data import columns as c
from rayrec.data.cuts import times_at
from rayrec.data.histories import BUCKET, Bounds, add_histories, before, cut, first_liked, liked_of_users
from rayrec.errors import InputError
from rayrec.planning import _shares
from rayrec.settings import load, validate, with_values

ROOT = Path(__file__).resolve().parents[2]

# Its configuration


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "{folds: 3}",
            "data.split: 3 folds are as many runs; name one, as in split: {folds: 3, fold: 1}, or run them all",
        ),
        ("{folds: 3, fold: 4}", "data.split: fold 4 is none of 3 folds; name one from 1 to 3"),
        ("{folds: 3, fold: 0}", "data.split.fold: Input should be greater than or equal to 1"),
        ("{folds: 1, fold: 1}", "data.split.folds: Input should be greater than or equal to 2"),
        ("{fold: 1}", "data.split: fold 1 of how many? Name folds too"),
        ("{folds: 3, fold: 1, train: 0.8}", "data.split: folds are blocks of equal size; leave train and valid out"),
        ("{fodls: 3}", "unknown key 'data.split.fodls'; did you mean 'folds'?"),
    ],
)
def test_a_split_that_is_none_is_named(split: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(None, [f"data.split={split}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_of_all_folds_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def act(config: Config) -> None:
        raise AssertionError

    with pytest.raises(SystemExit) as caught:
        cli.main("x", ROOT / "configs" / "smoke.yaml", act, ["--set", "data.split={folds: 3}"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "fold: 1}" in error and "jobs/experiment.py" in error


def test_a_configuration_without_folds_is_the_same_content_as_ever() -> None:
    assert identity(Config())["data"]["split"] == {"train": 0.8, "valid": 0.1}
    changed = load(None, ["data.split.train=0.7"])
    assert changed.model_dump(exclude_defaults=True) == {"data": {"split": {"train": 0.7}}}


def test_a_fold_comes_back_and_may_be_changed() -> None:
    one = load(None, ["data.split.folds=3", "data.split.fold=1"])
    tree = one.model_dump(mode="json")
    assert tree["data"]["split"] == {"folds": 3, "fold": 1} and validate(tree, "x") == one
    assert validate(with_values(tree, {"data.split.fold": 2}), "x").data.split == SplitConfig(folds=3, fold=2)


# Positions


@pytest.mark.parametrize("rows", [100, 101, 104, 9])
@pytest.mark.parametrize("folds", [2, 3, 7])
def test_blocks_are_those_of_scikit_learn(rows: int, folds: int) -> None:
    """The test block of its split j validates fold j, that of split j + 1 tests it."""
    splits = list(TimeSeriesSplit(folds + 1).split(np.zeros(rows)))
    for fold in range(1, folds + 1):
        (train, valid), (_, test) = splits[fold - 1], splits[fold]
        start, middle, end = SplitConfig(folds=folds, fold=fold).cuts(rows)
        found = [list(range(start)), list(range(start, middle)), list(range(middle, end))]
        assert found == [train.tolist(), valid.tolist(), test.tolist()]


def test_shares_are_cut_as_ever() -> None:
    assert SplitConfig().cuts(1003) == (802, 902, 1003)
    assert SplitConfig(train=0.7, valid=0.1).cuts(10) == (7, 8, 10)  # .7 + .1 < .8


def test_a_plan_counts_the_folds_rows() -> None:
    first, second = (DataConfig(split=SplitConfig(folds=2, fold=fold)) for fold in (1, 2))
    assert _shares(101, 7, first) == {"train": 26, "valid": 25, "test": 25}
    assert _shares(101, 7, second) == {"train": 51, "valid": 25, "test": 25}


# Rows


class Row(NamedTuple):
    """A row as it is read, in the order of the file."""

    user: int
    item: int
    rating: float
    time: int


class Fold(NamedTuple):
    """What is prepared of a fold."""

    sets: dict[str, list[dict[str, Any]]]
    liked: list[list[int]]  # of every user


def prepared(rows: list[Row], split: SplitConfig, size: int = 5) -> Fold:
    """The steps of ``prepare`` that cut, in one process and in blocks of ``size`` rows."""
    users, items, ratings, times = zip(*rows, strict=True)
    raw = {c.USER_ID: users, c.ITEM_ID: items, c.RATING: np.float32(ratings), c.TIMESTAMP: times}
    made = add_histories(pa.table(raw | {c.ROW: range(len(rows)), BUCKET: [0] * len(rows)}), threshold=4)
    ordered = made.drop_columns([c.LIKED]).sort_by([(c.TIMESTAMP, "ascending"), (c.ROW, "ascending")])
    blocks = [ordered.slice(start, size) for start in range(0, len(ordered), size)]
    valid, test, end = times_at(blocks, split.cuts(len(ordered)))
    kept = [before(block, end) for block in blocks]
    likes = np.zeros(max(users) + 1, np.int64)
    sets: dict[str, list[dict[str, Any]]] = {name: [] for name in c.SPLITS}
    for block in kept:
        for name, piece in cut(block, Bounds(c.TIMESTAMP, (valid, test))):
            sets[name] += piece.to_pylist()
    for row in (row for found in sets.values() for row in found):
        likes[row[c.USER_ID]] += row[c.LABEL]
    liked = first_liked(liked_of_users(made).sort_by(c.USER_ID), likes)
    return Fold(sets, liked[c.LIKED].to_pylist())


def test_by_hand() -> None:
    """Twelve rows, four blocks of three; what shares the time of the row at a cut goes with it, in the file's order."""
    times = [9, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7, 8]
    rows = [Row(i % 2, 10 + i, 5 if i % 3 else 1, time) for i, time in enumerate(times)]
    # In the order of time: rows 1 2 3 | 4 5 6 | 7 8 9 | 10 11 0, and 3 has the time of 4.
    expected = [([1, 2], [3, 4, 5, 6], [7, 8, 9]), ([1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 0])]
    for fold, sets in enumerate(expected, 1):
        found = prepared(rows, SplitConfig(folds=2, fold=fold))
        assert tuple([row[c.ROW] for row in found.sets[name]] for name in c.SPLITS) == sets
    first, second = (prepared(rows, SplitConfig(folds=2, fold=fold)).liked for fold in (1, 2))
    assert first == [[12, 14, 18], [11, 15, 17]]  # the likes of 2, 4, 8 and of 1, 5, 7; 0, 3, 6 and 9 are none
    assert second == [[12, 14, 18, 20], [11, 15, 17, 21]]


def tied(seed: int) -> list[Row]:
    """Rows full of ties in time, in a file of no order, without exact repeats."""
    draw = np.random.default_rng(seed)
    rows = {(int(draw.integers(7)), int(draw.integers(1, 30)), int(draw.integers(25))) for _ in range(120)}
    return [
        Row(user, item, float(draw.integers(3, 6)), time)
        for user, item, time in sorted(rows, key=lambda _: draw.random())
    ]


def is_before(rows: list[Row]) -> Callable[[int, int], bool]:
    return lambda one, other: (rows[one].time, one) < (rows[other].time, other)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("folds", [2, 3])
def test_nothing_of_a_fold_lies_after_its_test_rows(seed: int, folds: int) -> None:
    rows = tied(seed)
    by_fold = [prepared(rows, SplitConfig(folds=folds, fold=fold)) for fold in range(1, folds + 1)]
    ids = [{name: [row[c.ROW] for row in of.sets[name]] for name in c.SPLITS} for of in by_fold]
    earlier = is_before(rows)
    for of, sets in zip(by_fold, ids, strict=True):
        newest = [max(rows[row].time for row in sets[name]) for name in c.SPLITS]
        oldest = [min(rows[row].time for row in sets[name]) for name in c.SPLITS]
        assert newest[0] < oldest[1] and newest[1] < oldest[2]  # a tie is in one set only
        together = [row for name in c.SPLITS for row in sets[name]]
        assert together == sorted(together, key=lambda row: (rows[row].time, row))
        for user, liked in enumerate(of.liked):
            own = [row for row in together if rows[row].user == user and rows[row].rating >= 4]
            assert liked == [rows[row].item for row in own]
        for row in (row for name in c.SPLITS for row in of.sets[name]):
            me = row[c.ROW]
            past = [one for one in together if rows[one].user == rows[me].user and earlier(one, me)]
            history = of.liked[row[c.USER_ID]][: row[c.SEEN]]
            assert history == [rows[one].item for one in past if rows[one].rating >= 4]


@pytest.mark.parametrize("seed", range(5))
def test_folds_cover_the_rows_and_each_tests_what_the_next_validates(seed: int) -> None:
    rows = tied(seed)
    sets = [prepared(rows, SplitConfig(folds=3, fold=fold)).sets for fold in (1, 2, 3)]
    ids = [{name: [row[c.ROW] for row in of[name]] for name in c.SPLITS} for of in sets]
    for one, following in itertools.pairwise(ids):
        assert following["train"] == one["train"] + one["valid"] and following["valid"] == one["test"]
    assert sorted(ids[-1]["train"] + ids[-1]["valid"] + ids[-1]["test"]) == list(range(len(rows)))
    tested = [row for of in ids for row in of["test"]]
    assert len(set(tested)) == len(tested)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_blocks_of_any_size_are_cut_alike(size: int) -> None:
    rows, split = tied(0), SplitConfig(folds=3, fold=2)
    assert prepared(rows, split, size) == prepared(rows, split)


def test_fewer_rows_than_blocks_leave_sets_empty() -> None:
    """``prepare`` then says which set has no likes."""
    found = prepared([Row(0, 1, 5, 1), Row(0, 2, 1, 2)], SplitConfig(folds=2, fold=1))
    assert [len(found.sets[name]) for name in c.SPLITS] == [2, 0, 0]
