"""Sessions that ask for recommendations: looked through first, then read chunk by chunk in a run's own ids. No ray.

Memory is bounded by a block of rows, however long the files' row groups are, and by the run's items and, where users
are read, its users.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.datasets.values import text
from rayrec.data.files import of_size
from rayrec.data.store import open_table
from rayrec.errors import InputError

SESSION_ID: Final = "session_id"
ITEMS: Final = "items"
USER: Final = "user_id"

_BLOCK_ROWS: Final = 8192
_BUFFER: Final = 1 << 20  # bytes of a column that are read at a time
_IDS: Final = 1 << 21  # session ids that are compared at a time
_TEXT = (pa.types.is_string, pa.types.is_large_string)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_SOURCE_IDS = (*_TEXT, pa.types.is_integer, pa.types.is_floating, pa.types.is_dictionary, pa.types.is_null)


@dataclass(frozen=True)
class Survey:
    """What the sessions hold, in numbers."""

    sessions: int
    items: int  # that they name
    unknown: int  # of them those that the run does not know
    example: str | None  # the first of these
    empty: int  # sessions that are left with none
    strangers: int  # sessions of users whom the run does not know, where users are read

    def __str__(self) -> str:
        parts = [f"{self.sessions:,} sessions of {self.items:,} items"]
        if self.unknown:
            first = "" if self.example is None else f", {self.example!r} first"
            parts.append(f"{self.unknown:,} of these are none of the run's and left out{first}")
        if self.empty:
            parts.append(f"sessions left without one: {self.empty:,}")
        if self.strangers:
            parts.append(f"of users whom the run does not know: {self.strangers:,}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Requests:
    """Files of sessions, in order, and the prepared data that gives items and users their ids. Plain data."""

    files: tuple[str, ...]
    data: str  # its folder
    by_user: bool  # users are read
    session_kind: pa.DataType  # of a session's id
    item_kind: pa.DataType  # of an item's id; text where files differ

    def survey(self) -> Survey:
        """Goes through all of them once.

        Raises:
            InputError: there is no session; one has no id, or another's; a file is damaged.
        """
        ids = _Ids(self.data, self.by_user)
        counts = dict.fromkeys(("sessions", "items", "unknown", "empty", "strangers"), 0)
        example = None
        for file, first, block in self._blocks(_names(self.by_user)):
            missing = pc.index(pc.is_null(block[SESSION_ID]), True).as_py()
            if missing >= 0:
                raise InputError(f"{file}, row {first + missing + 1}: no {SESSION_ID}; give every session one")
            known, strange = ids.items(block[ITEMS])
            named = strange.drop_null()
            example = named[0].as_py() if example is None and len(named) else example
            counts["sessions"] += len(block)
            counts["items"] += len(known.values) + len(strange)
            counts["unknown"] += len(strange)
            counts["empty"] += int((np.diff(known.offsets.to_numpy()) == 0).sum())
            counts["strangers"] += int((ids.users(block).to_numpy() == c.UNKNOWN_USER).sum()) if self.by_user else 0
        if not counts["sessions"]:
            raise InputError(f"{self._place}: no session in it; give at least one")
        self._refuse_repeats(counts["sessions"])
        return Survey(**counts, example=example)

    def chunks(self, size: int) -> Iterator[pa.Table]:
        """Tables of exactly ``size`` sessions, the last of what is left: SESSION_ID as it came, HISTORY and USER_ID.

        They are cut by the order of the sessions alone, so that files and row groups change nothing.
        """
        ids = _Ids(self.data, self.by_user)
        return of_size((ids.table(block) for _, _, block in self._blocks(_names(self.by_user))), size)

    @property
    def _place(self) -> str:
        """The file, or the folder of several."""
        return self.files[0] if len(self.files) == 1 else self.files[0].rpartition("/")[0]

    def _blocks(self, names: Sequence[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Each block with its file and the place of its first row in there."""
        for uri in self.files:
            with _opened(uri) as file:
                first = 0
                for block in file.iter_batches(batch_size=_BLOCK_ROWS, columns=list(names)):
                    yield uri, first, block
                    first += len(block)

    def _refuse_repeats(self, sessions: int) -> None:
        """Equal ids fall into the same share; one share after the other is small enough to be compared."""
        shares = -(-sessions // _IDS)
        for share in range(shares):
            found = [_share(block[SESSION_ID], share, shares) for _, _, block in self._blocks([SESSION_ID])]
            counted = pc.value_counts(pa.chunked_array(found))
            repeated = counted.filter(pc.greater(counted.field("counts"), 1))
            if len(repeated):
                one = repeated[0].as_py()
                named = f"{one['counts']} sessions have the {SESSION_ID} {one['values']!r}"
                raise InputError(f"{self._place}: {named}; give each its own")


def open_requests(place: str, data: str, *, by_user: bool) -> Requests:
    """The sessions in a Parquet file, or in those of a folder in the order of their names.

    Args:
        place: a path or URI.
        data: folder of the run's prepared data.
        by_user: whether users are read, too.

    Raises:
        InputError: there is no such file; a column is missing, or holds something else.
    """
    try:
        files = _files(storage.absolute(place))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{place}: {_line(error)}; give --sessions a Parquet file or a folder of them") from None
    sessions, items = [], set()
    for uri in files:
        with _opened(uri) as file:
            columns = _columns(uri, file.schema_arrow, by_user)
        sessions.append(columns.field(SESSION_ID).type)
        if sessions[-1] != sessions[0]:
            raise InputError(f"{uri}: {SESSION_ID} is {sessions[-1]}, in {files[0]} {sessions[0]}; write one type")
        items.add(columns.field(ITEMS).type.value_type)
    items -= {pa.null()}  # of lists that are all empty
    return Requests(tuple(files), data, by_user, sessions[0], items.pop() if len(items) == 1 else pa.string())


def _files(uri: str) -> list[str]:
    if not storage.is_folder(uri):
        if not storage.exists(uri):
            raise InputError(f"{uri}: no such file; give --sessions a Parquet file or a folder of them")
        return [uri]
    names = [name for name in storage.names(uri) if name.endswith(".parquet") and name[0] not in "._"]
    if not names:
        raise InputError(f"{uri}: no .parquet file in this folder; give --sessions a Parquet file or a folder of them")
    return [storage.join(uri, name) for name in names]


def _names(by_user: bool) -> list[str]:
    return [SESSION_ID, ITEMS, *([USER] if by_user else [])]


def _columns(uri: str, found: pa.Schema, by_user: bool) -> pa.Schema:
    """The columns that are read, checked."""
    names = _names(by_user)
    for name in names:
        if found.names.count(name) != 1:
            why = ", by which this encoder knows users" if name == USER else ""
            times = f"{found.names.count(name)} columns" if name in found.names else "no column"
            raise InputError(f"{uri}: {times} {name!r}{why}; it needs one, and has {', '.join(found.names)}")
    columns = pa.schema([found.field(name) for name in names])
    lists = columns.field(ITEMS).type
    item = lists.value_type if _is(lists, _LISTS) else lists
    for name, is_right, wanted in (
        (SESSION_ID, _is(columns.field(SESSION_ID).type, (*_TEXT, pa.types.is_integer)), "whole numbers or text"),
        (ITEMS, item is not lists and _is(item, _SOURCE_IDS), "lists of item ids, oldest first"),
        (USER, not by_user or _is(columns.field(names[-1]).type, _SOURCE_IDS), "whole numbers or text"),
    ):
        if not is_right:
            raise InputError(f"{uri}: column {name!r} holds {columns.field(name).type}; write {wanted}")
    return columns


def _is(kind: pa.DataType, tests: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(test(kind) for test in tests)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    """The file for the block; raises ``InputError`` where it cannot be read."""
    try:
        with storage.open_file(uri) as source:
            yield pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)  # it would read a row group's columns
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not readable as Parquet: {_line(error)}; export it again") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _share(ids: pa.Array, share: int, shares: int) -> pa.Array:
    """Those of the ids whose hash falls into this share of all."""
    if shares == 1:
        return ids
    hashes = pd.util.hash_array(ids.to_numpy(zero_copy_only=False))
    return ids.filter(pa.array(hashes % shares == share))


class _Ids:
    """The run's ids of source ids, told as they are when data is prepared."""

    def __init__(self, data: str, by_user: bool) -> None:
        self._items = _source_ids(data, "items")
        self._users = _source_ids(data, "users") if by_user else None

    def table(self, block: pa.RecordBatch) -> pa.Table:
        """The block in the run's ids."""
        known, _ = self.items(block[ITEMS])
        return pa.table({SESSION_ID: block[SESSION_ID], c.HISTORY: known, c.USER_ID: self.users(block)})

    def items(self, lists: pa.Array) -> tuple[pa.ListArray, pa.Array]:
        """Lists of the items that the run knows, int32, and the source ids of the others."""
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        named = text(pc.list_flatten(lists))
        place = pc.index_in(named, value_set=self._items)
        is_known = pc.is_valid(place)
        owners = np.repeat(np.arange(len(lists)), lengths)[is_known.to_numpy(zero_copy_only=False)]
        ends = np.append(0, np.cumsum(np.bincount(owners, minlength=len(lists))))
        ids = pc.add(place.drop_null(), pa.scalar(1, pa.int32()))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), ids), named.filter(pc.invert(is_known))

    def users(self, block: pa.RecordBatch) -> pa.Array:
        """Of each row, int32."""
        if self._users is None:
            return pa.array(np.full(len(block), c.UNKNOWN_USER, np.int32))
        return pc.fill_null(pc.index_in(text(block[USER]), value_set=self._users), c.UNKNOWN_USER)


def _source_ids(data: str, name: str) -> pa.Array:
    return open_table(storage.join(data, f"{name}.parquet"))[c.SOURCE_ID].combine_chunks()
