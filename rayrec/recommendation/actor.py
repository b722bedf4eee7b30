"""The actor of a pass over sessions. It imports what makes lists and no more: every actor waits for that."""

from functools import cached_property
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.catalogue import lists_table
from rayrec.data.store import open_table
from rayrec.recommendation.recommenders import Plan, Recommender, open_recommender
from rayrec.recommendation.requests import ITEMS, SESSION_ID
from rayrec.sessions import Sessions
from rayrec.training.model import quiet_libraries

TITLES: Final = "titles"
SCORES: Final = c.SCORES


class ListActor:
    """From a chunk of sessions to a table of their lists, by ``schema``."""

    def __init__(self, plan: Plan, schema: pa.Schema) -> None:
        self._plan, self._schema = plan, schema

    @cached_property
    def _recommender(self) -> Recommender:
        """On first use: an error of an actor's constructor would come back from Ray as text alone, after retries."""
        quiet_libraries()
        return open_recommender(self._plan)

    @cached_property
    def _items(self) -> pa.Table:
        """What stands for an item's id, in the order of their ids."""
        items = open_table(storage.join(self._plan.run.data.folder, "items.parquet")).select([c.SOURCE_ID, c.TITLE])
        shown = items.rename_columns([ITEMS, TITLES]).combine_chunks()
        kind = self._schema.field(ITEMS).type.value_type
        return shown.set_column(0, ITEMS, shown[ITEMS].cast(kind))

    def __call__(self, chunk: pa.Table) -> pa.Table:
        history = chunk[c.HISTORY].combine_chunks()
        offsets = history.offsets.to_numpy()  # of a slice, they do not start at 0
        sessions = Sessions(history.flatten().to_numpy(), offsets - offsets[0])
        ids_BK, scores_BK = self._recommender(sessions, chunk[c.USER_ID].to_numpy(), self._plan.k)
        found = lists_table(ids_BK, scores_BK)
        ranked = found[c.RANKED].combine_chunks()
        columns = {SESSION_ID: chunk[SESSION_ID], SCORES: found[c.SCORES]}
        for name in (ITEMS, TITLES):
            shown = self._items[name].take(pc.subtract(ranked.values, 1))
            columns[name] = pa.ListArray.from_arrays(ranked.offsets, shown.combine_chunks())
        return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)
