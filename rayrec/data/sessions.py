"""Sessions, one row each: what stays of them, how they are cut, and the rows they become. No ray: functions of tables.

A table of sessions has USER_ID and SESSION, the interactions of that user from the oldest to the newest; where sessions
are cut whole, SPLIT says which set each belongs to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.columns import (
    IS_STRICT_COLD,
    IS_WARM,
    ITEM_ID,
    LABEL,
    LIKED,
    RATING,
    ROW,
    SEEN,
    TIMESTAMP,
    USER_ID,
)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
SESSION: Final = "session"
SPLIT: Final = "split"  # a place in SPLITS, or AFTER
TRAIN, VALID, TEST, AFTER = range(4)
COUNT: Final = "count"

_INTERACTION: Final = pa.struct([(ITEM_ID, pa.int32()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())])


def sessions_of(bucket: pa.Table) -> pa.Table:
    """All rows of some users, each a session in (TIMESTAMP, ROW) order."""
    rows = bucket.sort_by([(name, "ascending") for name in (USER_ID, TIMESTAMP, ROW)]).combine_chunks()
    users = rows[USER_ID].to_numpy()
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    columns = [rows[field.name].combine_chunks() for field in _INTERACTION]
    values = pa.StructArray.from_arrays(columns, fields=list(_INTERACTION))
    offsets = pa.array(np.append(starts, len(rows)), pa.int32())
    return pa.table({USER_ID: pa.array(users[starts]), SESSION: pa.ListArray.from_arrays(offsets, values)})


def interactions(sessions: pa.Table) -> pa.Table:
    """The interactions of all the sessions, in order, with their USER_ID."""
    values = _flat(sessions)
    users = np.repeat(sessions[USER_ID].to_numpy(), lengths(sessions))
    return pa.table([pa.array(users), *values.flatten()], names=[USER_ID, *(field.name for field in _INTERACTION)])


def lengths(sessions: pa.Table) -> IntArray:
    """Interactions of each session."""
    counts: IntArray = pc.list_value_length(sessions[SESSION]).to_numpy().astype(np.int64)
    return counts


def _flat(sessions: pa.Table) -> pa.StructArray:
    return pc.list_flatten(sessions[SESSION].combine_chunks())


# What stays


def _only(sessions: pa.Table, stays: BoolArray, least: int = 1) -> pa.Table:
    """The sessions with the interactions that stay; those with fewer than ``least`` of them go."""
    of_session = np.repeat(np.arange(len(sessions)), lengths(sessions))
    counts = np.bincount(of_session[stays], minlength=len(sessions))
    is_kept = counts >= least
    values = _flat(sessions).filter(pa.array(stays & is_kept[of_session]))
    offsets = pa.array(np.append(0, np.cumsum(counts[is_kept])), pa.int32())
    kept = sessions.filter(pa.array(is_kept))
    return kept.set_column(kept.column_names.index(SESSION), SESSION, pa.ListArray.from_arrays(offsets, values))


def without_low(sessions: pa.Table, rating: float) -> pa.Table:
    """Without the interactions rated lower than ``rating``."""
    given = interactions(sessions)[RATING].to_numpy()
    return _only(sessions, given >= np.float32(rating))  # in float32 on both sides: 4.1 as float32 is less than 4.1


def without_repeats(sessions: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Each interaction but the first of those that are equal in ``keys`` within a session goes."""
    repeated = interactions(sessions).select([USER_ID, *keys]).to_pandas().duplicated()
    return _only(sessions, ~repeated.to_numpy())


def of_length(sessions: pa.Table, least: int) -> pa.Table:
    """The sessions of at least ``least`` interactions."""
    return sessions.filter(pa.array(lengths(sessions) >= least))


@dataclass(frozen=True)
class Core:
    """Items, by their ids, among which every session that stays has at least ``least`` interactions."""

    items: BoolArray
    least: int


def of_core(sessions: pa.Table, core: Core) -> pa.Table:
    """The sessions that stay, with the items that stay."""
    return _only(sessions, core.items[interactions(sessions)[ITEM_ID].to_numpy()], core.least)


def core_counts(sessions: pa.Table, core: Core) -> pa.Table:
    """ITEM_ID and COUNT of the items that occur in what stays."""
    return _item_counts(of_core(sessions, core))


def _item_counts(sessions: pa.Table) -> pa.Table:
    items, counts = np.unique(interactions(sessions)[ITEM_ID].to_numpy(), return_counts=True)
    return pa.table({ITEM_ID: pa.array(items, pa.int32()), COUNT: pa.array(counts, pa.int64())})


def find_core(count: Callable[[Core], IntArray], items: int, least: int) -> Core:
    """The k-core: the most sessions and items such that each has ``least`` interactions with the others.

    A session is one row and knows its own length, so that only items need counting. Whatever goes in one pass is in no
    k-core of what was left, so the order in which things go changes nothing.

    Args:
        count: Interactions of every item id among the sessions that stay; shape (items + 1,).
    """
    core = Core(np.append(False, np.ones(items, bool)), least)
    while True:
        left = core.items & (count(core) >= least)
        if left.sum() == core.items.sum():
            return core
        core = Core(left, least)


@dataclass(frozen=True)
class NewIds:
    """For every id of before the one of now; of those that are gone, anything."""

    users: IntArray
    items: IntArray

    @classmethod
    def of(cls, users: BoolArray, items: BoolArray) -> "NewIds":
        """Of the users and items that stay, in the same order."""
        return cls(np.cumsum(users) - 1, np.cumsum(items))


def renumbered(sessions: pa.Table, ids: NewIds) -> pa.Table:
    """The sessions by their new ids."""
    items, *others = _flat(sessions).flatten()
    new = pa.array(ids.items[items.to_numpy()], pa.int32())
    values = pa.StructArray.from_arrays([new, *others], fields=list(_INTERACTION))
    offsets = pa.array(np.append(0, np.cumsum(lengths(sessions))), pa.int32())
    users = pa.array(ids.users[sessions[USER_ID].to_numpy()], pa.int32())
    return pa.table({USER_ID: users, SESSION: pa.ListArray.from_arrays(offsets, values)})


# How they are cut


def last_times(sessions: pa.Table) -> IntArray:
    """TIMESTAMP of each session's newest interaction."""
    times: IntArray = interactions(sessions)[TIMESTAMP].to_numpy()[np.cumsum(lengths(sessions)) - 1]
    return times


def cut_whole(sessions: pa.Table, starts: tuple[int, int, int]) -> pa.Table:
    """The sessions with SPLIT: their last times against those at which valid, test and what comes after it start."""
    places = np.searchsorted(np.array(starts), last_times(sessions), side="right")
    return sessions.append_column(SPLIT, pa.array(places, pa.int8()))


def before(sessions: pa.Table, split: int) -> pa.Table:
    """The sessions of the sets before ``split``."""
    return sessions.filter(pc.less(sessions[SPLIT], split))


def training_part(sessions: pa.Table) -> pa.Table:
    """What training knows: the sessions of that set, or of each session all but its last two interactions."""
    if SPLIT in sessions.column_names:
        return before(sessions, VALID)
    counts = lengths(sessions)
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(counts.sum())  # 1: the newest
    return _only(sessions, from_end > 2)


def training_counts(sessions: pa.Table) -> pa.Table:
    """ITEM_ID and COUNT of the items that occur in training."""
    return _item_counts(training_part(sessions))


def only_trained(sessions: pa.Table, trained: IntArray) -> pa.Table:
    """Without the items that training does not know: those whose number of training interactions is 0."""
    return _only(sessions, trained[interactions(sessions)[ITEM_ID].to_numpy()] > 0)


# The rows they become


@dataclass(frozen=True)
class Trained:
    """How often an item id occurs in training (n + 1 entries), and from where on that is warm."""

    items: IntArray
    warm_over: int


def rows_of(sessions: pa.Table, trained: Trained) -> pa.Table:
    """ROWS_SCHEMA and SPLIT: the target of a session that is cut whole is its last item, else its last three are.

    SEEN is the target's place in its session. Warm and strict cold speak of the target alone, since a session is new.
    """
    counts = lengths(sessions)
    if SPLIT in sessions.column_names:
        session, split = np.arange(len(sessions)), sessions[SPLIT].to_numpy()
        places = counts - 1
    else:
        session = np.repeat(np.arange(len(sessions)), 3)
        split = np.tile(np.array([TRAIN, VALID, TEST]), len(sessions))
        places = counts[session] - 3 + split
    targets = interactions(sessions).take(pa.array((np.cumsum(counts) - counts)[session] + places))
    known = trained.items[targets[ITEM_ID].to_numpy()]
    made = {
        LABEL: pa.array(np.ones(len(session)), pa.int8()),
        SEEN: pa.array(places, pa.int32()),
        IS_WARM: pa.array(known > trained.warm_over),
        IS_STRICT_COLD: pa.array(known == 0),
        SPLIT: pa.array(split, pa.int8()),
    }
    for name, column in made.items():
        targets = targets.append_column(name, column)
    return targets


def liked_of(sessions: pa.Table) -> pa.Table:
    """(USER_ID, LIKED): the items of every session."""
    items = interactions(sessions)[ITEM_ID].combine_chunks()
    offsets = pa.array(np.append(0, np.cumsum(lengths(sessions))), pa.int32())
    return pa.table({USER_ID: sessions[USER_ID], LIKED: pa.ListArray.from_arrays(offsets, items)})
