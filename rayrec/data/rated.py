"""Histories of all rated items with their labels, out of the prepared rows; no ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.store import open_table

USERS = "users.parquet"


def write_rated(folder: str, scratch: Path) -> None:
    """Write them beside the prepared rows in ``folder``. Memory: about 100 bytes a row."""
    splits = {split: open_table(storage.join(folder, f"{split}.parquet")) for split in c.SPLITS}
    wanted = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.LABEL]
    rows = pa.concat_tables([table.select(wanted) for table in splits.values()])
    histories, seen = rated_histories(rows, len(open_table(storage.join(folder, "users.parquet"))))
    pq.write_table(histories, scratch / USERS, compression="zstd")
    start = 0
    for split, table in splits.items():
        part = pa.table([pa.array(seen[start : start + len(table)])], schema=c.SEEN_RATED_SCHEMA)
        pq.write_table(part, scratch / f"{split}.parquet", compression="zstd")
        start += len(table)
    Beside.RATED.publish(folder, scratch)


def rated_histories(rows: pa.Table, users: int) -> tuple[pa.Table, NDArray[np.int32]]:
    """What each of ``users`` has rated (RATED_SCHEMA), and how many of it strictly before each row, shape (rows,).

    In the order of time, rows of one time in the order in which they come, as for liked histories. A row that is there
    twice, as where one set is part of another, is in the history once and not before itself.
    """
    frame = rows.to_pandas()
    key = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP]
    order = np.lexsort([frame[c.TIMESTAMP], frame[c.USER_ID]])  # stable
    frame = frame.iloc[order]
    is_first = ~frame.duplicated(key).to_numpy()
    firsts = frame[is_first]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(firsts[c.USER_ID], minlength=users))])
    before = np.cumsum(is_first) - is_first - offsets[frame[c.USER_ID]]
    if not is_first.all():
        before = frame.assign(before=before).groupby(key)["before"].transform("min").to_numpy()
    seen = np.empty(len(frame), np.int32)
    seen[order] = before
    lists = [
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(firsts[name].to_numpy()))
        for name in (c.ITEM_ID, c.LABEL)
    ]
    return pa.table(lists, schema=c.RATED_SCHEMA), seen
