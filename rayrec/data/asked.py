"""Rows with two answers: every prepared next item, then an item that its session lacks so far; no ray.

Next items all have label 1, which teaches a Yes or No nothing. The other item comes by its events in training, so that
it is as popular as a target: a model must tell the sessions apart, not the items. What follows in the session is not
known yet, and so may be drawn: to leave it out would tell of what tests. Both rows have the same history, whose prompt
then begins alike.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.catalogue import open_sessions, training_counts
from rayrec.data.files import write_parquet
from rayrec.errors import InputError
from rayrec.sessions import Index, Sessions

ASKED_ROWS: Final = 2  # for each prepared row
ASKED_SPLITS: Final = ("train", "valid")  # test sessions are asked about what an encoder finds

_SEED: Final = 0  # what is asked about is part of the data, not of a run: every training seed learns from the same
_BLOCK_ROWS: Final = 65_536

Shares = NDArray[np.float64]


def write_asked(folder: str, warm_over: int, scratch: Path) -> None:
    """Write them (ROWS_SCHEMA) beside the prepared rows in ``folder``, two for each, in their order.

    ``warm_over`` as for the rows: an item of more events in training is warm. Rows go block by block; memory is what
    counting the training events takes.

    Raises:
        InputError: a session holds all that training knows.
    """
    counts = training_counts(folder)
    for split in ASKED_SPLITS:
        write_parquet(scratch / f"{split}.parquet", _blocks(folder, split, counts, warm_over), c.ROWS_SCHEMA)
    Beside.ASKED.publish(folder, scratch)


def _blocks(folder: str, split: str, counts: Index, warm_over: int) -> Iterator[pa.Table]:
    rows = open_sessions(folder, split)
    for start in range(0, len(rows), _BLOCK_ROWS):
        ids = np.arange(start, min(start + _BLOCK_ROWS, len(rows)))
        block = rows.frame(ids)
        drawn = lacking_items(rows.sessions(ids, with_target=True), counts, _shares(split, start, len(ids)))
        if not drawn.all():
            where = f"{folder}/{split}.parquet, row {start + int(np.argmin(drawn)) + 1}"
            raise InputError(f"{where}: its session holds all that training knows; nothing is left to ask about")
        yield _with_others(block, drawn, counts[drawn] > warm_over)


def lacking_items(held: Sessions, counts: Index, shares_S: Shares) -> Index:
    """For each session an item that it does not hold, as likely as it has events, or 0 for none; shape (sessions,).

    The catalogue's events lie in a row, item by item; ``shares_S``, in [0, 1), says how far along what a session leaves
    of them its item is found. No draw is refused, however much a session holds.

    Args:
        held: the items that each session holds.
        counts: events of each item in training, by id; shape (items + 1,).
        shares_S: one for each session.
    """
    ends = np.cumsum(counts)
    pairs = np.unique(held.owners * len(counts) + held.items)  # once each, by session, then by item
    owners, items = np.divmod(pairs, len(counts))
    ends_own = np.cumsum(counts[items])
    own_S = np.bincount(owners, counts[items], minlength=len(held)).astype(np.int64)
    left_S = ends[-1] - own_S
    place_S = np.minimum((shares_S * left_S).astype(np.int64), left_S - 1)
    before = ends_own - counts[items] - (np.cumsum(own_S) - own_S)[owners]  # events of the session's lesser items
    is_passed = ends[items] - counts[items] - before <= place_S[owners]
    passed_S = np.bincount(owners[is_passed], counts[items][is_passed], minlength=len(held)).astype(np.int64)
    return np.where(left_S > 0, np.searchsorted(ends, place_S + passed_S, side="right"), 0)


def _shares(split: str, start: int, rows: int) -> Shares:
    """A number in [0, 1) for each row from ``start`` on, the same wherever a block begins.

    Philox counts, so that a row's numbers follow from its id alone; each count gives four, of which one is used.
    """
    bits = np.random.Philox((_SEED, c.SPLITS.index(split)), counter=start)
    return np.random.Generator(bits).random((rows, 4))[:, 0]


def _with_others(block: pa.Table, drawn: Index, is_warm: NDArray[np.bool_]) -> pa.Table:
    """Each row, then the same of the item that was drawn for it."""
    others = {
        **{name: block[name] for name in (c.USER_ID, c.TIMESTAMP, c.SEEN)},
        c.ITEM_ID: pa.array(drawn, pa.int32()),
        c.RATING: pa.nulls(len(block), pa.float32()),
        c.LABEL: pa.array(np.zeros(len(block)), pa.int8()),
        c.IS_WARM: pa.array(is_warm),
        c.IS_STRICT_COLD: pa.array(np.zeros(len(block), bool)),
    }
    both = pa.concat_tables([block, pa.table({name: others[name] for name in block.column_names}, block.schema)])
    return both.take(np.arange(len(both)).reshape(ASKED_ROWS, -1).T.ravel())
