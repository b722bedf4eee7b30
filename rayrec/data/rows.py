"""Prepared rows by id: what one batch needs of a split, for each kind of stream."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.plan import Ids
from rayrec.data.store import open_table
from rayrec.sessions import Sessions
from rayrec.stages import Stream

HISTORY = c.HISTORY  # of a fetched table: list<int32>, oldest first

# Where a stream's prompts lie, and which columns of them it reads; the first are the tokens.
_PROMPTS = MappingProxyType(
    {
        Stream.TEXT_PROMPTS: (Beside.PROMPTS, (c.TEXT_TOKENS, c.TEXT_TITLE_AT)),
        Stream.HYBRID_PROMPTS: (Beside.PROMPTS, (c.HYBRID_TOKENS, c.USER_AT, c.TITLE_AT, c.ITEM_AT)),
        Stream.ANSWER_PROMPTS: (Beside.ANSWERS, (c.TEXT_TOKENS, c.ANSWER_AT)),
    }
)


@dataclass(frozen=True)
class RowSource:
    """One split of a prepared dataset, as one stream reads it. Plain data: it travels to every worker."""

    folder: str  # path or URI of the prepared data
    split: str
    stream: Stream
    max_len: int  # longest history the encoder reads
    beside: frozenset[Beside] = frozenset()  # what is read beside the rows, or for them; prompts go by the stream

    def open(self) -> "OpenRows":
        """The opened split; once per process."""
        return _open(self)


@lru_cache(maxsize=8)
def _open(source: RowSource) -> "OpenRows":
    return OpenRows(source)


class OpenRows:
    """Memory-mapped columns of one split."""

    def __init__(self, source: RowSource) -> None:
        self.source = source
        is_asked = Beside.ASKED in source.beside
        self._rows = self._beside(Beside.ASKED) if is_asked else open_table(f"{source.folder}/{source.split}.parquet")
        self._told = [self._beside(each) for each in (Beside.FLOOR, Beside.FEATURES) if each in source.beside]
        self._prompts = None
        if source.stream in _PROMPTS:
            beside, columns = _PROMPTS[source.stream]
            self._prompts = self._beside(beside).select(columns)
        self._labels: pa.Array | None = None
        if Beside.RATED in source.beside:
            users = open_table(f"{source.folder}/{Beside.RATED}/users.parquet")
            histories, self._seen = users[c.RATED], self._beside(Beside.RATED)[c.SEEN_RATED]
            self._labels = users[c.RATED_LABELS].combine_chunks().values
        else:
            histories, self._seen = open_table(f"{source.folder}/users.parquet")[c.LIKED], self._rows[c.SEEN]
        of_users = histories.combine_chunks()
        self._values, self._starts = of_users.values, of_users.offsets.to_numpy()

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @cached_property
    def user_ids(self) -> NDArray[np.int32]:
        return self._numpy(c.USER_ID)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Sequence length of each row: history items for the encoder, tokens for a prompt."""
        if self._prompts is None:
            shown: NDArray[np.int32] = np.minimum(self._seen.to_numpy(), self.source.max_len).astype(np.int32)
            return shown
        lengths: NDArray[np.int32] = pc.list_value_length(self._prompts[0]).to_numpy()
        return lengths

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """A number for each row; rows of one number have the same liked history, so their prompts begin alike."""
        return (self._numpy(c.USER_ID).astype(np.int64) << 32) + self._numpy(c.SEEN)

    def frame(self, ids: Ids) -> pa.Table:
        """All stored columns of the rows ``ids``, in that order."""
        return self._rows.take(ids)

    def fetch(self, ids: Ids) -> pa.Table:
        """The rows ``ids``, in that order, with what this stream reads: user, history, item, label, prompt."""
        rows = self._rows.select([c.USER_ID, c.ITEM_ID, c.LABEL]).take(ids)
        seen = self._seen.take(ids).to_numpy()
        offsets, places = self._history(
            rows[c.USER_ID].to_numpy(), seen, np.minimum(seen, self.source.max_len).astype(np.int32)
        )
        columns = {
            c.ROW: pa.array(ids),
            c.USER_ID: rows[c.USER_ID].combine_chunks(),
            c.ITEM_ID: rows[c.ITEM_ID].combine_chunks(),
            c.LABEL: rows[c.LABEL].combine_chunks(),
            HISTORY: pa.ListArray.from_arrays(offsets, self._values.take(places)),
        }
        if self._labels is not None:
            columns[c.HISTORY_LABELS] = pa.ListArray.from_arrays(offsets, self._labels.take(places))
        for told in self._told:
            taken = told.take(ids)
            columns |= {name: taken[name].combine_chunks() for name in taken.column_names}
        if self._prompts is not None:
            columns[c.SHARED] = pa.array(self.shared[ids])
            prompts = self._prompts.take(ids)
            columns |= {name: prompts[name].combine_chunks() for name in prompts.column_names}
        return pa.table(columns)

    def sessions(self, ids: Ids, *, with_target: bool = False) -> Sessions:
        """Of next items: everything before the target of each row, however long, or up to and with it."""
        places = self._rows.select([c.USER_ID, c.SEEN]).take(ids)
        lengths = places[c.SEEN].to_numpy() + with_target
        offsets, events = self._history(places[c.USER_ID].to_numpy(), lengths, lengths)
        return Sessions(self._values.take(events).to_numpy(), offsets.to_numpy())

    def _history(
        self, users: NDArray[np.int32], seen: NDArray[np.int32], counts: NDArray[np.int32]
    ) -> tuple[pa.Array, pa.Array]:
        """Where each row's history begins in the batch's values, and where these lie in those of all users."""
        offsets = np.concatenate([[0], np.cumsum(counts)])
        firsts = self._starts[users] + seen - counts
        places = np.arange(offsets[-1]) + np.repeat(firsts - offsets[:-1], counts)
        return pa.array(offsets, pa.int32()), pa.array(places)

    def _beside(self, beside: Beside) -> pa.Table:
        return open_table(f"{self.source.folder}/{beside}/{self.source.split}.parquet")

    def _numpy(self, name: str) -> NDArray[np.int32]:
        array: NDArray[np.int32] = self._rows[name].to_numpy()
        return array
