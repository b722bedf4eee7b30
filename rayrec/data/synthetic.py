"""A dataset made of nothing: ratings from a low-rank model of taste, so that there is something to learn."""

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from rayrec.config.data import SyntheticConfig
from rayrec.data import scan
from rayrec.data.columns import ITEM_ID, RAW_ITEM_SCHEMA, RAW_SCHEMA, TITLE

_RANK = 3
_START = 978_307_200  # 2001-01-01
_GAP = 3600  # seconds between two rows at most
_FIRST_USERS = 0.75  # share of the users there from the start; the others join later, so that some are cold


def interactions(size: SyntheticConfig, seed: int) -> Iterator[pa.Table]:
    """``size.rows`` ratings of 1 to 5 in the order of time, as blocks of ``RAW_SCHEMA``.

    No user rates an item twice before having rated all of them. Every quantity draws from a generator of its own: the
    rows do not depend on the size of the blocks. Memory: one block, ``_RANK`` numbers a user and an item.
    """
    tastes, users, noise, gaps = (np.random.default_rng([seed, part]) for part in range(4))
    taste, appeal = tastes.normal(size=(size.users, _RANK)), tastes.normal(size=(size.items, _RANK))
    leniency, quality = tastes.normal(size=size.users), tastes.normal(size=size.items)
    # A user walks through all items from a start of their own; the stride shares no factor with the number of items.
    start = tastes.integers(size.items, size=size.users)
    stride = next(
        step for step in range(max(1, int(size.items * 0.618)), size.items + 2) if math.gcd(step, size.items) == 1
    )
    rated, now = np.zeros(size.users, np.int64), _START
    for first in range(0, size.rows, scan.BLOCK_ROWS):
        row = np.arange(first, min(first + scan.BLOCK_ROWS, size.rows))
        present = np.ceil(size.users * (_FIRST_USERS + (1 - _FIRST_USERS) * row / size.rows))
        user = (users.random(len(row)) * present).astype(np.int64)
        item = (start[user] + stride * (rated[user] + _times_before(user))) % size.items
        rated += np.bincount(user, minlength=size.users)
        score = (taste[user] * appeal[item]).sum(axis=1) / math.sqrt(_RANK) + 0.4 * (leniency[user] + quality[item])
        rating = np.clip(np.rint(3.4 + 1.2 * score + 0.3 * noise.normal(size=len(row))), 1, 5)
        time = now + np.cumsum(1 + (gaps.random(len(row)) * _GAP).astype(np.int64))
        now = int(time[-1])
        columns = [_names("u", user), _names("i", item), rating.astype(np.float32), time, row]
        yield pa.table([pa.array(column) for column in columns], schema=RAW_SCHEMA)


def items(size: SyntheticConfig) -> Iterator[pa.Table]:
    """One table of ``size.items`` titles such as ``Film 12 (1987)``."""
    number = range(size.items)
    titles = [f"Film {i} ({1930 + i * 37 % 90})" for i in number]
    yield pa.table({ITEM_ID: [f"i{i}" for i in number], TITLE: titles}, schema=RAW_ITEM_SCHEMA)


def _names(prefix: str, ids: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pa.Array:
    return pa.array(np.char.add(prefix, ids.astype(str)), pa.string())


def _times_before(values: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """How often each entry occurred before it: [7, 7, 3, 7] -> [0, 1, 0, 2]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.searchsorted(ordered, ordered)
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - starts
    return result
