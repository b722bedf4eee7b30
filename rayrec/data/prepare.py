"""Raw interactions to the prepared folder: clean, re-index, reduce, label, histories, split by time, warm and cold.

What follows the first survey is another matter for next items: ``rayrec.data.next_item``.

Ray Data does the work. Memory is bounded by blocks plus O(users + items); what is gathered between two passes lies in
the object store, which spills to disk. The result is the same bytes for any number of CPUs and any size of blocks:
whatever depends on order is decided by (timestamp, ROW).
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rayrec.cache import file_sha256
from rayrec.config.data import DataConfig, SplitConfig
from rayrec.data.blocks import calm_ray_data, map_blocks, read, tables
from rayrec.data.columns import (
    ITEM_ID,
    LABEL,
    LIKED,
    ROW,
    ROWS_SCHEMA,
    SOURCE_ID,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    USERS_SCHEMA,
)
from rayrec.data.cuts import cut_times
from rayrec.data.datasets import GivenSplit, RawDataset
from rayrec.data.files import Manifest, write_items, write_parquet, write_text
from rayrec.data.histories import (
    BUCKET,
    Bounds,
    IntArray,
    Tally,
    Training,
    Vocabulary,
    add_histories,
    annotate,
    before,
    cut,
    encode,
    first_liked,
    given_histories,
    liked_of_users,
)
from rayrec.data.next_item import Surveyed, write_sessions
from rayrec.data.survey import Rule, Survey, check_left, fold_titles, sightings
from rayrec.errors import InputError

MANIFEST = "manifest.json"
BUCKET_ROWS = 250_000  # rows of the users that one task orders at a time


def prepare(data: DataConfig, raw: RawDataset, folder: Path) -> Manifest:
    """Writes train, valid and test (ROWS_SCHEMA), users, items and the manifest into ``folder``; ray is initialised.

    The work happens in ``<folder>.partial``, which is renamed at the end: ``folder`` is there complete or not at all.

    Returns:
        The manifest: sources and files with their sha256, counts after every step, split times in seconds or the file
        of each set, counts of every split. A fold's rows are those before its end (``SplitConfig``), and so are the
        users' liked items; users and items keep the ids that they have among all rows, the same in every fold.

    Raises:
        InputError: a source is wrong or has no times that a split needs, nothing is left, a set lacks likes, dislikes
            or, of next items, sessions, or ``folder`` is not empty.
    """
    if not raw.is_timed and not data.split.leave_one_out:
        raise InputError(
            f"dataset {raw.name}: the file has an order and no times, which a split by time needs; set data.task:"
            " next_item and data.split: {leave_one_out: true}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: already holds files; remove the folder or choose another name")
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with calm_ray_data():
            manifest = _prepare(data, raw, work)
        write_text(work / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        work.replace(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def _prepare(data: DataConfig, raw: RawDataset, folder: Path) -> Manifest:
    titles = fold_titles(raw.items())
    rows = read(raw.interactions)
    survey = _survey(rows, data, titles[ITEM_ID].combine_chunks())
    steps = survey.steps
    check_left(raw.name, steps)
    vocabulary = Vocabulary(survey.users, survey.items, math.ceil(steps[-1]["rows"] / BUCKET_ROWS))
    surveyed = Surveyed(map_blocks(rows, encode, vocabulary), vocabulary, titles, steps)
    del rows, survey
    write = write_sessions if data.task == "next_item" else _write_clicks
    written = write(folder, data, raw, surveyed)
    return {
        "dataset": raw.name,
        "sources": dict(raw.sha256),
        **written,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }


def _write_clicks(folder: Path, data: DataConfig, raw: RawDataset, surveyed: Surveyed) -> Manifest:
    """Writes train, valid and test, users and items; returns what the manifest says of them."""
    steps, users, items = surveyed.steps, surveyed.vocabulary.users, surveyed.vocabulary.items
    histories = _histories(surveyed, data, raw.split)
    if raw.split is None:
        count = histories.count()
        repeats = {"step": "drop exact repeats", "rows": count, "users": len(users), "items": len(items)}
        steps.append({**repeats, "dropped": steps[-1]["rows"] - count})

    untitled = write_items(folder / "items.parquet", items, surveyed.titles)
    order = [TIMESTAMP, ROW] if raw.split is None else [ROW]
    ordered = histories.drop_columns([LIKED]).sort(order).materialize()
    bounds, split = _bounds(ordered, steps[-1]["rows"], data.split, raw.split)
    likes = None
    if "fold" in split:
        ordered = map_blocks(ordered, before, split["t_end"])
        step, likes = _counted(ordered, len(users), len(items))
        steps.append({**step, "dropped": steps[-1]["rows"] - step["rows"]})
    write_parquet(folder / "users.parquet", _user_tables(histories, users, likes), USERS_SCHEMA)
    del histories
    training = _training(ordered, bounds, len(users), len(items), data.warm_over)
    splits = _write_splits(folder, map_blocks(ordered, annotate, training), bounds, len(users), len(items))
    return {
        "steps": steps,
        "users": len(users),
        "items": len(items),
        "untitled": untitled,
        "split": split,
        "splits": splits,
        "mean_liked_per_training_user": splits["train"]["likes"] / splits["train"]["users"],
    }


def _survey(rows: ray.data.Dataset, data: DataConfig, known: pa.Array) -> Survey:
    """What stays, reduced to the first users and items if so configured."""
    survey = Survey(tables(map_blocks(rows, sightings, Rule(known))), reduced=False)
    if data.max_users is None and data.max_items is None:
        return survey
    # Another look: a user all of whose items go, goes too, and who then comes first may have changed.
    rule = Rule(known, survey.users[: data.max_users], survey.items[: data.max_items])
    return Survey(tables(map_blocks(rows, sightings, rule)), reduced=True)


def _histories(surveyed: Surveyed, data: DataConfig, given: GivenSplit | None) -> ray.data.Dataset:
    """The one shuffle by user. Whole buckets of users go to a task, since a call for each user would be slow."""
    of_bucket: Callable[[pa.Table], pa.Table] = (
        partial(add_histories, threshold=data.threshold) if given is None else partial(given_histories, split=given)
    )
    buckets = surveyed.rows.groupby(BUCKET, num_partitions=surveyed.vocabulary.buckets)
    histories = buckets.map_groups(of_bucket, batch_format="pyarrow")
    materialized: ray.data.Dataset = histories.materialize()  # for two readers
    return materialized


def _counted(ordered: ray.data.Dataset, users: int, items: int) -> tuple[Manifest, IntArray]:
    """What a fold's rows hold, as a step of the manifest, and the likes of every user; shape (users,)."""
    tally, likes = Tally(users, items), np.zeros(users, np.int64)
    for block in tables(ordered):
        liked = tally.count(block).filter(pc.equal(block[LABEL], 1))
        likes += np.bincount(liked[USER_ID].to_numpy(), minlength=users)
    found = tally.summary()
    return {"step": "drop rows after the fold"} | {key: found[key] for key in ("rows", "users", "items")}, likes


def _user_tables(histories: ray.data.Dataset, sources: pa.Array, likes: IntArray | None) -> Iterator[pa.Table]:
    """Every user's liked items; the first ``likes[user]`` of them where some rows are dropped for their time."""
    liked = histories.map_batches(liked_of_users, batch_size=None, batch_format="pyarrow")
    for block in tables(liked.sort(USER_ID)):
        kept = block if likes is None else first_liked(block, likes)
        yield kept.append_column(SOURCE_ID, sources.take(block[USER_ID]))


def _bounds(
    ordered: ray.data.Dataset, rows: int, split: SplitConfig, given: GivenSplit | None
) -> tuple[Bounds, Manifest]:
    """Where valid and test begin, and what the manifest says of it: times, or the files of each set."""
    if given is not None:
        return Bounds(ROW, given.starts), dict(given.names())
    (valid, test, _), told = cut_times(tables(ordered), rows, split)
    return Bounds(TIMESTAMP, (valid, test)), told


def _training(ordered: ray.data.Dataset, bounds: Bounds, users: int, items: int, warm_over: int) -> Training:
    """Training rows of every user and item."""
    training = Training(np.zeros(users, np.int64), np.zeros(items + 1, np.int64), warm_over)
    for block in tables(ordered):
        rows = block.filter(pc.less(block[bounds.key], bounds.starts[0]))
        for counts, name in ((training.users, USER_ID), (training.items, ITEM_ID)):
            np.add(counts, np.bincount(rows[name].to_numpy(), minlength=len(counts)), out=counts)
    return training


def _write_splits(
    folder: Path, rows: ray.data.Dataset, bounds: Bounds, users: int, items: int
) -> dict[str, dict[str, Any]]:
    """One pass over the rows in the order of the bounds' key, file after file; returns the counts of each set."""
    tallies = {split: Tally(users, items) for split in SPLITS}
    pieces = itertools.chain.from_iterable(cut(block, bounds) for block in tables(rows))
    for split, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        counted = (tallies[split].count(piece) for _, piece in group)
        write_parquet(folder / f"{split}.parquet", counted, ROWS_SCHEMA)
    splits = {split: tally.summary() for split, tally in tallies.items()}
    for split, counts in splits.items():
        dislikes = counts["rows"] - counts["likes"]
        if not counts["likes"] or not dislikes:
            raise InputError(
                f"the {split} set has {counts['likes']} likes and {dislikes} dislikes and needs some of both; "
                "choose another data.split, data.split_files or data.threshold"
            )
    return splits
