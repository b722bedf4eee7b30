"""Sessions to the prepared folder: gather, reduce to a core, cut, a row for each target; Ray Data does the work.

Memory: blocks, O(users + items). Steps and protocol are those of https://arxiv.org/abs/2402.01339.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rayrec.config.data import DataConfig, SplitConfig
from rayrec.data import sessions as s
from rayrec.data.blocks import map_blocks, tables
from rayrec.data.columns import ITEM_ID, LIKED, ROWS_SCHEMA, SEEN, SOURCE_ID, SPLITS, TIMESTAMP, USER_ID, USERS_SCHEMA
from rayrec.data.cuts import cut_times
from rayrec.data.datasets import RawDataset
from rayrec.data.files import Manifest, write_items, write_parquet
from rayrec.data.histories import BUCKET, Tally, Vocabulary
from rayrec.data.survey import check_left
from rayrec.errors import InputError

_PROMPTED: Final = 2  # interactions of a session at least: a prompt and what follows
_LEFT_OUT: Final = 3  # with leave-one-out: a target for each set

_T = TypeVar("_T")


@dataclass(frozen=True)
class Surveyed:
    """The rows that stay so far, by dense ids, and what was dropped."""

    rows: ray.data.Dataset
    vocabulary: Vocabulary
    titles: pa.Table
    steps: list[dict[str, Any]]


def write_sessions(folder: Path, data: DataConfig, raw: RawDataset, surveyed: Surveyed) -> Manifest:
    """Writes train, valid and test, users and items; returns what the manifest says of them.

    Users and items have the ids of the core. A session that goes after that, because little of it is known to training,
    keeps its id, without items.

    Raises:
        InputError: nothing is left, or a set stays empty.
    """
    sessions, users, items = _reduced(data, raw.name, surveyed)
    steps = _Steps(surveyed.steps, len(users), len(items))
    split: Manifest = {"leave_one_out": True}
    if not data.split.leave_one_out:
        sessions, split = _cut(sessions, data.split, len(users))
    counts = _item_counts(sessions.map_batches(s.training_counts, batch_size=None, batch_format="pyarrow"), len(items))
    if not data.split.leave_one_out:
        if "fold" in split:
            sessions = steps.after("drop sessions after the fold", sessions, s.before, s.AFTER)
        sessions = steps.after("drop what training lacks from later sessions", sessions, s.only_trained, counts)
        sessions = steps.after(f"drop later sessions shorter than {_PROMPTED}", sessions, s.of_length, _PROMPTED)
    untitled = write_items(folder / "items.parquet", items, surveyed.titles)
    write_parquet(folder / "users.parquet", _user_tables(sessions, users), USERS_SCHEMA)
    rows = map_blocks(sessions, s.rows_of, s.Trained(counts, data.warm_over))
    splits = _write_splits(folder, rows, len(users), len(items))
    return {
        "task": data.task,
        "timed": raw.is_timed,
        "steps": surveyed.steps,
        "users": len(users),
        "items": len(items),
        "items_in_training": int((counts > 0).sum()),
        "untitled": untitled,
        "split": split,
        "splits": splits,
        "mean_liked_per_training_user": int(counts.sum()) / splits["train"]["users"],
    }


class _Steps:
    """The manifest's steps, as sessions go through them."""

    def __init__(self, told: list[dict[str, Any]], users: int, items: int) -> None:
        self._told, self._users, self._items = told, users, items

    def after(
        self, name: str, sessions: ray.data.Dataset, step: Callable[[pa.Table, _T], pa.Table], shared: _T
    ) -> ray.data.Dataset:
        """``step`` of the sessions, counted."""
        left: ray.data.Dataset = map_blocks(sessions, step, shared).materialize()
        self.left = Tally(self._users, self._items)
        for block in tables(left):
            self.left.count(s.interactions(block))
        found = self.left.summary()
        counts = {key: found[key] for key in ("rows", "users", "items")}
        self._told.append({"step": name, **counts, "dropped": self._told[-1]["rows"] - counts["rows"]})
        return left


def _reduced(data: DataConfig, name: str, surveyed: Surveyed) -> tuple[ray.data.Dataset, pa.Array, pa.Array]:
    """The sessions that there are to cut, by new ids, and the source ids of their users and items."""
    users, items = surveyed.vocabulary.users, surveyed.vocabulary.items
    steps = _Steps(surveyed.steps, len(users), len(items))
    buckets = surveyed.rows.groupby(BUCKET, num_partitions=surveyed.vocabulary.buckets)
    sessions = buckets.map_groups(s.sessions_of, batch_format="pyarrow").materialize()
    if data.min_rating is not None:
        sessions = steps.after("drop low ratings", sessions, s.without_low, data.min_rating)
    sessions = steps.after("drop exact repeats", sessions, s.without_repeats, (ITEM_ID, TIMESTAMP))
    if data.resolved_repeats == "first":
        sessions = steps.after("drop repeats in a session", sessions, s.without_repeats, (ITEM_ID,))
    if data.core is not None:
        core = s.find_core(
            lambda core: _item_counts(map_blocks(sessions, s.core_counts, core), len(items)), len(items), data.core
        )
        sessions = steps.after(f"keep the {data.core}-core", sessions, s.of_core, core)
    shortest = _LEFT_OUT if data.split.leave_one_out else _PROMPTED
    sessions = steps.after(f"drop sessions shorter than {shortest}", sessions, s.of_length, shortest)
    check_left(name, surveyed.steps)
    kept = steps.left
    renumbered = map_blocks(sessions, s.renumbered, s.NewIds.of(kept.users, kept.items)).materialize()
    return renumbered, users.filter(pa.array(kept.users)), items.filter(pa.array(kept.items[1:]))


def _item_counts(counted: ray.data.Dataset, items: int) -> s.IntArray:
    """The COUNTs of all blocks, shape (items + 1,)."""
    counts = np.zeros(items + 1, np.int64)
    for block in tables(counted):
        np.add.at(counts, block[ITEM_ID].to_numpy(), block[s.COUNT].to_numpy())
    return counts


def _cut(sessions: ray.data.Dataset, split: SplitConfig, users: int) -> tuple[ray.data.Dataset, Manifest]:
    """The sessions with their sets, and the manifest's ``split``."""
    times = np.sort(np.concatenate([s.last_times(block) for block in tables(sessions)]))
    starts, told = cut_times([pa.table({TIMESTAMP: times})], users, split)
    return map_blocks(sessions, s.cut_whole, starts).materialize(), told


def _user_tables(sessions: ray.data.Dataset, sources: pa.Array) -> Iterator[pa.Table]:
    """LIKED of every user, none of those whose session is gone."""
    liked = sessions.map_batches(s.liked_of, batch_size=None, batch_format="pyarrow").sort(USER_ID)
    first, none = 0, pa.table({name: pa.array([], USERS_SCHEMA.field(name).type) for name in (USER_ID, LIKED)})
    for block in itertools.chain(tables(liked), [none]):  # the last stands for those behind the last session
        users = block[USER_ID].to_numpy()
        last = int(users[-1]) + 1 if len(users) else len(sources)
        lengths = np.zeros(last - first, np.int64)
        lengths[users - first] = pc.list_value_length(block[LIKED]).to_numpy()
        items = pc.list_flatten(block[LIKED].combine_chunks())
        lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), items)
        yield pa.table({USER_ID: np.arange(first, last), SOURCE_ID: sources.slice(first, last - first), LIKED: lists})
        first = last


def _write_splits(folder: Path, rows: ray.data.Dataset, users: int, items: int) -> dict[str, dict[str, Any]]:
    """One pass over the rows of all sets; returns the counts of each."""
    tallies = {split: Tally(users, items) for split in SPLITS}
    interactions = dict.fromkeys(SPLITS, 0)

    def counted(split: str, pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for piece in pieces:
            interactions[split] += len(piece) + pc.sum(piece[SEEN]).as_py()
            yield tallies[split].count(piece)

    ordered = rows.sort([s.SPLIT, TIMESTAMP, USER_ID])
    pieces = (
        (place, block.filter(pc.equal(block[s.SPLIT], place)))
        for block in tables(ordered)
        for place in pc.unique(block[s.SPLIT]).to_pylist()
    )
    for place, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        write_parquet(folder / f"{SPLITS[place]}.parquet", counted(SPLITS[place], (p for _, p in group)), ROWS_SCHEMA)
    splits = {split: tally.summary() | {"interactions": interactions[split]} for split, tally in tallies.items()}
    for split, counts in splits.items():
        if not counts["rows"]:
            raise InputError(f"the {split} set has no session; choose another data.split or data.core")
    return splits
