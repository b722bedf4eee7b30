"""Where the data comes from and how it is prepared."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from rayrec.config.section import Section
from rayrec.stages import Task

Dataset = Literal[
    "ml-100k", "ml-1m", "table", "collm", "amazon-books", "amazon-beauty", "steam", "sessions", "synthetic"
]
Repeats = Literal["keep", "first"]

# Tried in this order. The first needs only a package index; hashes are those of the archives.
DATASET_SOURCES: Mapping[str, tuple[str, ...]] = {
    "ml-100k": (
        "pypi://recbole==1.2.1/recbole/dataset_example/ml-100k",
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
        "#sha256=50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": (
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
        "#sha256=a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "table": (),
    "collm": (),
    "amazon-books": (),
    "amazon-beauty": (),
    "steam": (),
    "sessions": (),
    "synthetic": (),
}


# Ratings, titles and users, as the README.txt of each says: for --plan where the files are not at hand.
DATASET_SIZES: Mapping[str, tuple[int, int, int]] = {
    "ml-100k": (100_000, 1_682, 943),
    "ml-1m": (1_000_209, 3_883, 6_040),
}


class SplitConfig(Section):
    """Where the rows, in the order of time, are cut: by shares, or as one of several forward-chained folds.

    Of next items, the rows are whole sessions in the order of their last times. They may also be cut each on its own:
    with ``leave_one_out`` the last item of every session tests, the one before it validates, and what is older trains.

    Shares: what ``train`` and ``valid`` leave is the test set, the newest.

    Folds: the rows are ``folds`` + 2 blocks of equal size; what does not divide goes to the oldest. Fold j trains on
    blocks 1 to j, validates on j + 1 and tests on j + 2; later rows are left out. This is evaluation on a rolling
    origin with a growing training set (https://otexts.com/fpp3/tscv.html), cut as scikit-learn's ``TimeSeriesSplit``
    cuts for ``folds`` + 1 splits: the test block of one split validates here, that of the next tests
    (https://scikit-learn.org/stable/modules/generated/sklearn.model_selection.TimeSeriesSplit.html). All users share
    one timeline, since a model must not learn from what comes after the rows that it is tested on
    (https://arxiv.org/abs/2010.11060).

    Rows of equal time are never parted: those at a cut belong to the later side.
    """

    train: float = Field(0.8, gt=0, lt=1)
    valid: float = Field(0.1, gt=0, lt=1)
    folds: int | None = Field(None, ge=2)
    fold: int | None = Field(None, ge=1)  # which of them, from 1
    leave_one_out: bool = False

    @model_validator(mode="after")
    def _has_one_test_set(self) -> "SplitConfig":
        if self.leave_one_out:
            if others := self.model_fields_set & (_SHARES | _FOLDS):
                raise ValueError(
                    f"leave_one_out cuts every session on its own; leave {' and '.join(sorted(others))} out"
                )
        elif self.folds is not None or self.fold is not None:
            self._check_fold()
        elif self.train + self.valid >= 1:
            raise ValueError(
                f"train {self.train} + valid {self.valid} leaves no test set; make them add up to less than 1"
            )
        return self

    def _check_fold(self) -> None:
        if self.folds is None:
            raise ValueError(f"fold {self.fold} of how many? Name folds too, as in split: {{folds: 3, fold: 1}}")
        if self.model_fields_set & _SHARES:
            raise ValueError("folds are blocks of equal size; leave train and valid out, as in split: {folds: 3}")
        if self.fold is None:
            raise ValueError(
                f"{self.folds} folds are as many runs; name one, as in split: {{folds: {self.folds}, fold: 1}},"
                " or run them all with jobs/experiment.py"
            )
        if self.fold > self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds} folds; name one from 1 to {self.folds}")

    @model_serializer(mode="wrap")
    def _only_what_counts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One way to cut: for shares, the content and so the fingerprints are those of before there were others."""
        counts = {"leave_one_out"} if self.leave_one_out else _SHARES if self.folds is None else _FOLDS
        return {key: value for key, value in dump(self).items() if key in counts}

    def cuts(self, rows: int) -> tuple[int, int, int]:
        """Positions in the order of time, from 0, at which valid and test begin and behind which test has ended."""
        if self.folds is None or self.fold is None:
            # Rounded first: .7 + .1 is a little less than .8.
            valid, test = (math.floor(round(rows * share, 6)) for share in (self.train, self.train + self.valid))
            return valid, test, rows
        block, later = rows // (self.folds + 2), self.folds - self.fold
        return rows - (later + 2) * block, rows - (later + 1) * block, rows - later * block


_SHARES, _FOLDS = frozenset({"train", "valid"}), frozenset({"folds", "fold"})


class SplitFilesConfig(Section):
    """Which file of a dataset that comes split serves as which set."""

    train: str = "train_ood2.pkl"
    valid: str = "valid_ood2.pkl"
    test: str = "test_ood2.pkl"

    @model_validator(mode="after")
    def _differ(self) -> "SplitFilesConfig":
        if len({self.train, self.valid, self.test}) < 3:
            raise ValueError("split_files: a file serves as two sets; name three different files")
        return self


class ColumnMap(Section):
    """Names of the columns of your own CSV or Parquet interactions file; ``title`` may come from a second file."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = "rating"  # None: there are none, for next items
    timestamp: str = "timestamp"
    title: str | None = None


class ItemColumnMap(Section):
    """Names of the columns of your own items file."""

    item: str = "item_id"
    title: str = "title"


class SyntheticConfig(Section):
    """Size of the generated dataset: ratings from a low-rank taste model, so that there is something to learn."""

    users: PositiveInt = 60
    items: PositiveInt = 80
    rows: PositiveInt = 4000


# What `collm` brings with it, or would no longer be what its authors published.
_GIVEN = ("split", "threshold", "rating_range", "max_users", "max_items")
_WITHOUT_RATINGS = ("steam", "sessions")
_OF_SESSIONS = ("task", "core", "repeats", "min_rating")  # what only `next_item` reads, and its name


class DataConfig(Section):
    """Which rows there are, and what one asks.

    ``click``: whether a user likes an item; a row is a rating. ``next_item``: which item follows; a row is the session
    of a user, all of whose interactions count, whatever their rating, unless ``min_rating`` says otherwise.
    """

    task: Task = Task.CLICK
    dataset: Dataset = "ml-100k"
    sources: tuple[str, ...] | None = None  # None: DATASET_SOURCES
    # Where titles come from when the interactions have none: your items file, the list of books, products or games.
    item_sources: tuple[str, ...] = ()
    columns: ColumnMap = ColumnMap()
    item_columns: ItemColumnMap = ItemColumnMap()
    synthetic: SyntheticConfig = SyntheticConfig()
    rating_range: tuple[float, float] = (0.0, 5.0)
    threshold: float = 4.0  # a rating of at least this is a like
    split: SplitConfig = SplitConfig()
    split_files: SplitFilesConfig = SplitFilesConfig()  # `collm` only
    history: PositiveInt = 10  # liked titles in a prompt
    max_users: PositiveInt | None = None  # after re-indexing by first appearance; None keeps all
    max_items: PositiveInt | None = None
    warm_over: int = Field(3, ge=0)  # warm: user and item both have more training rows than this
    title_chars: PositiveInt = 150  # a longer title is cut in prompts
    core: PositiveInt | None = None  # every session and every item has at least so many interactions; None keeps all
    repeats: Repeats | None = None  # an item again in a session: kept, or only its first; None: as published for it
    min_rating: float | None = None  # an interaction that is rated lower does not count

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        if self.dataset != "synthetic" and not self.resolved_sources:
            what = "folder" if self.dataset == "collm" else "interactions file"
            raise ValueError(f"dataset {self.dataset!r} needs data.sources: the path or URI of your {what}")
        if self.dataset == "collm":
            self._check_unchanged(_GIVEN, "dataset 'collm' comes split, labelled and whole")
        elif self.split_files != SplitFilesConfig():
            raise ValueError(f"split_files: dataset {self.dataset!r} is split by time; leave data.split_files out")
        low, high = self.rating_range
        if not low < self.threshold <= high:
            raise ValueError(f"threshold {self.threshold} must lie inside rating_range ({low}, {high}]")
        self._check_task()
        return self

    def _check_task(self) -> None:
        if self.task is Task.NEXT_ITEM:
            if self.dataset == "collm":
                raise ValueError("task next_item: dataset 'collm' comes labelled, row by row; use task click")
            self._check_unchanged(("threshold",), "a next item has no label; data.min_rating drops low ratings")
            return
        self._check_unchanged(_OF_SESSIONS[1:], "for task next_item only")
        if self.split.leave_one_out:
            raise ValueError("split.leave_one_out: cuts sessions; set data.task: next_item, or leave it out")
        if self.dataset in _WITHOUT_RATINGS or self.columns.rating is None:
            raise ValueError(f"task click: dataset {self.dataset!r} has no ratings; set data.task: next_item")

    def _check_unchanged(self, keys: tuple[str, ...], why: str) -> None:
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: {why}; leave data.{key} out")

    @model_serializer(mode="wrap")
    def _only_what_counts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of clicks, the content and so the fingerprints are those of before there were sessions."""
        hidden = () if self.task is Task.NEXT_ITEM else _OF_SESSIONS
        return {key: value for key, value in dump(self).items() if key not in hidden}

    @property
    def resolved_sources(self) -> tuple[str, ...]:
        return DATASET_SOURCES[self.dataset] if self.sources is None else self.sources

    @property
    def resolved_repeats(self) -> Repeats:
        """A second review of a game is no second purchase; a product may well be bought again."""
        return self.repeats or ("first" if self.dataset == "steam" else "keep")
