"""From raw rows to labelled rows with histories, one table at a time. No ray: Ray Data maps these over its blocks."""

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.columns import (
    HISTORY,
    IS_STRICT_COLD,
    IS_WARM,
    ITEM_ID,
    LABEL,
    LIKED,
    RATING,
    REPEATED,
    ROW,
    SEEN,
    SPLITS,
    TIMESTAMP,
    USER_ID,
)
from rayrec.data.datasets import GivenSplit
from rayrec.errors import InputError

IntArray = npt.NDArray[np.int64]
BUCKET: Final = "bucket"  # users that are shuffled together

_ENCODED: Final = pa.schema(
    [
        (USER_ID, pa.int32()),
        (ITEM_ID, pa.int32()),
        (RATING, pa.float32()),
        (TIMESTAMP, pa.int64()),
        (ROW, pa.int64()),
        (BUCKET, pa.int32()),
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Source ids by first appearance: a user's position is the user id, an item's position + 1 the item id."""

    users: pa.Array
    items: pa.Array
    buckets: int


def encode(block: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """A raw block with dense ids, in its histories too, less the rows that do not stay.

    A row stays if nothing is missing and both ids stay: an id is in the vocabulary only if some row of it stays, and
    whether a row stays depends on nothing else.
    """
    users = pc.index_in(block[USER_ID], vocabulary.users)
    items = pc.add(pc.index_in(block[ITEM_ID], vocabulary.items), pa.scalar(1, pa.int32()))
    buckets = pc.subtract(users, pc.multiply(pc.divide(users, vocabulary.buckets), vocabulary.buckets))
    columns = [users, items, block[RATING], block[TIMESTAMP], block[ROW], buckets.cast(pa.int32())]
    encoded = pa.table(columns, schema=_ENCODED)
    if HISTORY not in block.column_names:
        return encoded.drop_null()
    stays = functools.reduce(pc.and_, (pc.is_valid(column) for column in encoded.columns))
    block, encoded = block.filter(stays), encoded.filter(stays)
    history = pc.add(pc.index_in(pc.list_flatten(block[HISTORY]), vocabulary.items), pa.scalar(1, pa.int32()))
    ends = np.cumsum(pc.list_value_length(block[HISTORY]).to_numpy())
    lists = pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), history.combine_chunks())
    return encoded.append_column(HISTORY, lists).append_column(IS_WARM, block[IS_WARM])


def add_histories(bucket: pa.Table, threshold: float) -> pa.Table:
    """All rows of some users, labelled, in (user, timestamp, ROW) order, without exact repeats.

    SEEN counts the user's liked rows strictly before a row in that order. The first row of each user carries LIKED, the
    items of all the user's liked rows; on the others it is null.
    """
    rows = bucket.drop_columns([BUCKET]).to_pandas().sort_values([USER_ID, TIMESTAMP, ROW])
    rows = rows.drop_duplicates([USER_ID, ITEM_ID, TIMESTAMP], keep="first")
    users, items = rows[USER_ID].to_numpy(), rows[ITEM_ID].to_numpy()
    # In float32 on both sides: 4.1 as float32 is less than 4.1.
    likes = rows[RATING].to_numpy() >= np.float32(threshold)
    first = np.append(True, users[1:] != users[:-1])
    starts = np.flatnonzero(first)
    before = np.cumsum(likes) - likes  # over all users
    lengths = np.zeros(len(rows), np.int64)
    lengths[starts] = np.add.reduceat(likes, starts, dtype=np.int64)
    rows[LABEL] = likes.astype(np.int8)
    rows[SEEN] = (before - np.repeat(before[starts], np.diff(np.append(starts, len(rows))))).astype(np.int32)
    liked = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32)), pa.array(items[likes]), mask=pa.array(~first)
    )
    return pa.Table.from_pandas(rows, preserve_index=False).append_column(LIKED, liked)


def given_histories(bucket: pa.Table, split: GivenSplit) -> pa.Table:
    """The same of rows that bring label and history, in (user, ROW) order; every row stays.

    LIKED is a user's longest history, SEEN the length of the row's own. REPEATED: an earlier row, of whichever set, has
    the same user, item and time.

    Raises:
        InputError: a history is not the beginning of the longest, so that one sequence a user cannot hold both.
    """
    rows = bucket.drop_columns([BUCKET]).sort_by([(USER_ID, "ascending"), (ROW, "ascending")])
    users, histories = rows[USER_ID].to_numpy(), pa.concat_arrays(rows[HISTORY].chunks)
    items, offsets = histories.values.to_numpy(), histories.offsets.to_numpy()
    starts, lengths = offsets[:-1], np.diff(offsets)
    first = np.append(True, users[1:] != users[:-1])
    longest = np.lexsort([-lengths, users])[first][np.cumsum(first) - 1]  # of each row's user
    row = np.repeat(np.arange(len(rows)), lengths)
    at = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    differs = items[starts[row] + at] != items[starts[longest[row]] + at]
    if differs.any():
        wrong = row[differs.argmax()]
        here, there = (split.where(rows[ROW][int(i)].as_py()) for i in (wrong, longest[wrong]))
        raise InputError(
            f"{here}: his is not the beginning of this user's longest history ({there}); such histories cannot be kept"
        )
    repeated = rows.select([USER_ID, ITEM_ID, TIMESTAMP]).to_pandas().duplicated()
    columns = {
        LABEL: pc.equal(rows[RATING], 1).cast(pa.int8()),
        SEEN: pa.array(lengths, pa.int32()),
        REPEATED: pa.array(repeated.to_numpy()),
        LIKED: histories.take(pa.array(longest, mask=~first)),
    }
    rows = rows.drop_columns([HISTORY])
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def liked_of_users(block: pa.Table) -> pa.Table:
    """(USER_ID, LIKED) of the users whose first row is in the block."""
    return block.select([USER_ID, LIKED]).filter(pc.is_valid(block[LIKED]))


def first_liked(users: pa.Table, counts: IntArray) -> pa.Table:
    """(USER_ID, LIKED) with the first ``counts[user]`` items of each user."""
    lists, lengths = users[LIKED].combine_chunks(), counts[users[USER_ID].to_numpy()]
    offsets = np.append(0, np.cumsum(lengths))
    index = np.arange(offsets[-1]) + np.repeat(lists.offsets.to_numpy()[:-1] - offsets[:-1], lengths)
    first = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), lists.values.take(pa.array(index)))
    return pa.table({USER_ID: users[USER_ID], LIKED: first})


@dataclass(frozen=True)
class Training:
    """What the training rows say about every user (m entries) and item id (n + 1 entries, the first is padding)."""

    users: npt.NDArray[np.int64]  # training rows
    items: npt.NDArray[np.int64]
    warm_over: int


def annotate(block: pa.Table, training: Training) -> pa.Table:
    """The block with warm, where it does not say so itself, and strict cold from the training counts."""
    users, items = training.users[block[USER_ID].to_numpy()], training.items[block[ITEM_ID].to_numpy()]
    warm = pa.array((users > training.warm_over) & (items > training.warm_over))
    if IS_WARM in block.column_names:
        warm = pc.coalesce(block[IS_WARM], warm)
        block = block.drop_columns([IS_WARM])
    return block.append_column(IS_WARM, warm).append_column(IS_STRICT_COLD, pa.array((users == 0) & (items == 0)))


@dataclass(frozen=True)
class Bounds:
    """Where valid and test begin in rows that are ordered by the column ``key``: at these values of it."""

    key: str
    starts: tuple[int, int]


def before(block: pa.Table, end: int) -> pa.Table:
    """The rows of a block whose TIMESTAMP is less than ``end``."""
    return block.filter(pc.less(block[TIMESTAMP], end))


def cut(block: pa.Table, bounds: Bounds) -> list[tuple[str, pa.Table]]:
    """(split, rows) of a block in the order of the bounds' key."""
    inner = np.searchsorted(block[bounds.key].to_numpy(), np.array(bounds.starts))
    ends = [0, *inner.tolist(), len(block)]
    pieces = ((split, block.slice(low, high - low)) for split, low, high in zip(SPLITS, ends, ends[1:], strict=False))
    return [(split, piece) for split, piece in pieces if len(piece)]


class Tally:
    """Counts of one split as its rows stream by."""

    def __init__(self, users: int, items: int) -> None:
        self._counts = dict.fromkeys(("rows", "likes", "warm", "strict_cold"), 0)
        self.users, self.items = np.zeros(users, bool), np.zeros(items + 1, bool)  # those that occur

    def count(self, rows: pa.Table) -> pa.Table:
        """``rows`` itself, counted."""
        self._counts["rows"] += len(rows)
        counted = {"likes": LABEL, "warm": IS_WARM, "strict_cold": IS_STRICT_COLD, "repeated": REPEATED}
        for key, column in counted.items():
            if column in rows.column_names:
                self._counts[key] = self._counts.get(key, 0) + pc.sum(rows[column]).as_py()
        self.users[rows[USER_ID].to_numpy()] = True
        self.items[rows[ITEM_ID].to_numpy()] = True
        return rows

    def summary(self) -> dict[str, Any]:
        counts = self._counts
        seen = {"users": int(self.users.sum()), "items": int(self.items.sum())}
        return {**counts, **seen, "cold": counts["rows"] - counts["warm"]}
