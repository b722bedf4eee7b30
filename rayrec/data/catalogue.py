"""What prepared rows say of a catalogue: what is asked about, the sessions that train, what its items are called."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.files import untitled
from rayrec.data.rows import OpenRows, RowSource
from rayrec.data.store import open_table
from rayrec.sessions import Index, Sessions
from rayrec.stages import Stream


def open_sessions(folder: str, split: str) -> OpenRows:
    """A split, to read whole sessions of."""
    return RowSource(folder, split, Stream.INTERACTIONS, max_len=1).open()


def training_sessions(folder: str, *, seed: int | None = None) -> Sessions:
    """All that training knows, by time; with a ``seed``, where there are no times, in an order that is drawn."""
    rows = open_sessions(folder, "train")
    order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
    return rows.sessions(order, with_target=True)


def training_counts(folder: str) -> Index:
    """Events of each item in training, by id; shape (items + 1,)."""
    items = len(open_table(storage.join(folder, "items.parquet")))
    return training_sessions(folder).counts(items)


def target_shares(folder: str) -> NDArray[np.float32]:
    """Each item's share of the training rows, by id; shape (items + 1,)."""
    items = len(open_table(storage.join(folder, "items.parquet")))
    targets = open_table(storage.join(folder, "train.parquet"))[c.ITEM_ID].to_numpy()
    shares: NDArray[np.float32] = (np.bincount(targets, minlength=items + 1) / len(targets)).astype(np.float32)
    return shares


def item_names(folder: str) -> list[str | None]:
    """Of the items in the order of their ids; None for one without a name."""
    items = open_table(storage.join(folder, "items.parquet"))
    is_named = pc.not_equal(items[c.TITLE], untitled(items[c.SOURCE_ID]))
    names: list[str | None] = pc.if_else(is_named, items[c.TITLE], pa.scalar(None, pa.string())).to_pylist()
    return names


def lists_table(ids_BK: NDArray[np.int64], scores_BK: NDArray[np.float32] | None = None) -> pa.Table:
    """RANKED and SCORES of lists whose empty places, 0, come last; shape (sessions, places) each."""
    is_there = ids_BK > 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]), pa.int32())
    scores = pa.nulls(len(ids_BK), c.LISTS_SCHEMA.field(c.SCORES).type)
    if scores_BK is not None:
        scores = pa.ListArray.from_arrays(offsets, pa.array(scores_BK[is_there], pa.float32()))
    return pa.table(
        {c.RANKED: pa.ListArray.from_arrays(offsets, pa.array(ids_BK[is_there], pa.int32())), c.SCORES: scores}
    )
