"""Raw interactions to the prepared folder: clean, re-index, reduce, label, histories, split by time, warm and cold.

Ray Data does the work. Memory is bounded by blocks plus O(users + items); what is gathered between two passes lies in
the object store, which spills to disk. The result is the same bytes for any number of CPUs and any size of blocks:
whatever depends on order is decided by (timestamp, ROW).
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from rayrec.cache import file_sha256
from rayrec.config.data import DataConfig, SplitConfig
from rayrec.data.blocks import calm_ray_data, input_error, map_blocks, read, tables
from rayrec.data.columns import (
    ITEM_ID,
    ITEMS_SCHEMA,
    LABEL,
    LIKED,
    ROW,
    ROWS_SCHEMA,
    SOURCE_ID,
    SPLITS,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USERS_SCHEMA,
)
from rayrec.data.datasets import GivenSplit, RawDataset
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
from rayrec.data.survey import Rule, Survey, fold_titles, sightings
from rayrec.errors import InputError

MANIFEST = "manifest.json"
ROW_GROUP = 8192
BUCKET_ROWS = 250_000  # rows of the users that one task orders at a time

Manifest = dict[str, Any]


def prepare(data: DataConfig, raw: RawDataset, folder: Path) -> Manifest:
    """Writes train, valid and test (ROWS_SCHEMA), users, items and the manifest into ``folder``; ray is initialised.

    The work happens in ``<folder>.partial``, which is renamed at the end: ``folder`` is there complete or not at all.

    Returns:
        The manifest: sources and files with their sha256, counts after every step, split times in seconds or the file
        of each set, counts of every split. A fold's rows are those before its end (``SplitConfig``), and so are the
        users' liked items; users and items keep the ids that they have among all rows, the same in every fold.

    Raises:
        InputError: a source is wrong, nothing is left, a set lacks likes or dislikes, or ``folder`` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: already holds files; remove the folder or choose another name")
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with calm_ray_data():
            manifest = _prepare(data, raw, work)
        _write_text(work / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        work.replace(folder)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if (cause := input_error(error)) is not None:
            raise cause from None
        raise
    return manifest


def _prepare(data: DataConfig, raw: RawDataset, folder: Path) -> Manifest:
    titles = fold_titles(raw.items())
    rows = read(raw.interactions)
    survey = _survey(rows, data, titles[ITEM_ID].combine_chunks())
    steps, users, items = survey.steps, survey.users, survey.items
    if not len(users):
        drops = ", ".join(f"{step['step']}: {step['dropped']}" for step in steps[1:])
        raise InputError(f"dataset {raw.name}: none of {steps[0]['rows']} rows is left ({drops}); check data.sources")

    vocabulary = Vocabulary(users, items, math.ceil(steps[-1]["rows"] / BUCKET_ROWS))
    histories = _histories(rows, vocabulary, data, raw.split)
    if raw.split is None:
        count = histories.count()
        repeats = {"step": "drop exact repeats", "rows": count, "users": len(users), "items": len(items)}
        steps.append({**repeats, "dropped": steps[-1]["rows"] - count})

    untitled = _write_items(folder / "items.parquet", items, titles)
    order = [TIMESTAMP, ROW] if raw.split is None else [ROW]
    ordered = histories.drop_columns([LIKED]).sort(order).materialize()
    bounds, split = _bounds(ordered, steps[-1]["rows"], data.split, raw.split)
    likes = None
    if "fold" in split:
        ordered = map_blocks(ordered, before, split["t_end"])
        step, likes = _counted(ordered, len(users), len(items))
        steps.append({**step, "dropped": steps[-1]["rows"] - step["rows"]})
    _write_parquet(folder / "users.parquet", _user_tables(histories, users, likes), USERS_SCHEMA)
    del histories, rows
    training = _training(ordered, bounds, len(users), len(items), data.warm_over)
    splits = _write_splits(folder, map_blocks(ordered, annotate, training), bounds, len(users), len(items))
    return {
        "dataset": raw.name,
        "sources": dict(raw.sha256),
        "steps": steps,
        "users": len(users),
        "items": len(items),
        "untitled": untitled,
        "split": split,
        "splits": splits,
        "mean_liked_per_training_user": splits["train"]["likes"] / splits["train"]["users"],
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }


def _survey(rows: ray.data.Dataset, data: DataConfig, known: pa.Array) -> Survey:
    """What stays, reduced to the first users and items if so configured."""
    survey = Survey(tables(map_blocks(rows, sightings, Rule(known))), reduced=False)
    if data.max_users is None and data.max_items is None:
        return survey
    # Another look: a user all of whose items go, goes too, and who then comes first may have changed.
    rule = Rule(known, survey.users[: data.max_users], survey.items[: data.max_items])
    return Survey(tables(map_blocks(rows, sightings, rule)), reduced=True)


def _histories(
    raw_rows: ray.data.Dataset, vocabulary: Vocabulary, data: DataConfig, given: GivenSplit | None
) -> ray.data.Dataset:
    """The one shuffle by user. Whole buckets of users go to a task, since a call for each user would be slow."""
    of_bucket: Callable[[pa.Table], pa.Table] = (
        partial(add_histories, threshold=data.threshold) if given is None else partial(given_histories, split=given)
    )
    buckets = map_blocks(raw_rows, encode, vocabulary).groupby(BUCKET, num_partitions=vocabulary.buckets)
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


def _write_items(path: Path, sources: pa.Array, titles: pa.Table) -> int:
    """The items in the order of their ids; returns how many had no title."""
    found = titles[TITLE].take(pc.index_in(sources, titles[ITEM_ID].combine_chunks()))
    shown = pc.if_else(pc.is_valid(found), found, pc.binary_join_element_wise("Untitled", sources, " "))
    ids = pa.array(np.arange(1, len(sources) + 1, dtype=np.int32))
    _write_parquet(path, [pa.table([ids, sources, shown], schema=ITEMS_SCHEMA)], ITEMS_SCHEMA)
    return int(found.null_count)


def _bounds(
    ordered: ray.data.Dataset, rows: int, split: SplitConfig, given: GivenSplit | None
) -> tuple[Bounds, Manifest]:
    """Where valid and test begin, and what the manifest says of it: times, or the files of each set."""
    if given is not None:
        return Bounds(ROW, given.starts), dict(given.names())
    times = dict(zip(("t_valid", "t_test", "t_end"), _times_at(tables(ordered), split.cuts(rows)), strict=True))
    starts = times["t_valid"], times["t_test"]
    fold = {} if split.folds is None else {"folds": split.folds, "fold": split.fold}
    if not fold:
        del times["t_end"]  # nothing comes behind it
    return Bounds(TIMESTAMP, starts), {**fold, **times, "iso": {name: _iso(time) for name, time in times.items()}}


def _times_at(blocks: Iterable[pa.Table], positions: Sequence[int]) -> list[int]:
    """Timestamps at ascending positions of the rows in the order of time; behind the last row, one more than its."""
    times: list[int] = []
    passed, time = 0, 0
    for block in blocks:
        while len(times) < len(positions) and positions[len(times)] < passed + len(block):
            times.append(block[TIMESTAMP][positions[len(times)] - passed].as_py())
        passed, time = passed + len(block), block[TIMESTAMP][-1].as_py()
    return times + [time + 1] * (len(positions) - len(times))


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
        _write_parquet(folder / f"{split}.parquet", counted, ROWS_SCHEMA)
    splits = {split: tally.summary() for split, tally in tallies.items()}
    for split, counts in splits.items():
        dislikes = counts["rows"] - counts["likes"]
        if not counts["likes"] or not dislikes:
            raise InputError(
                f"the {split} set has {counts['likes']} likes and {dislikes} dislikes and needs some of both; "
                "choose another data.split, data.split_files or data.threshold"
            )
    return splits


def _write_parquet(path: Path, pieces: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Row groups of exactly ROW_GROUP rows, whatever the sizes of the ``pieces``: the same rows give the same bytes."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rest = schema.empty_table()
        for table in pieces:
            rest = pa.concat_tables([rest, table.select(schema.names).cast(schema)])
            whole = len(rest) - len(rest) % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                writer.write_table(rest.slice(start, ROW_GROUP).combine_chunks(), ROW_GROUP)
            rest = rest.slice(whole)
        if len(rest):
            writer.write_table(rest.combine_chunks(), ROW_GROUP)


def _write_text(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _iso(time: int) -> str:
    return datetime.fromtimestamp(time, timezone.utc).isoformat()
