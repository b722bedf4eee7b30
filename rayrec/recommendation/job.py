"""The whole job: look through the sessions, rank for them with Ray Data actors, write the lists whole or not at all."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa
import pyarrow.compute as pc

from rayrec import __version__, storage
from rayrec.actors import streamed
from rayrec.data import columns as c
from rayrec.data.catalogue import lists_table
from rayrec.data.files import write_parquet
from rayrec.data.store import open_table
from rayrec.errors import InputError
from rayrec.name_tables import nearness_table
from rayrec.pipeline import quieten
from rayrec.preparation import prepare_table
from rayrec.recommendation.plan import Plan, make_plan, open_run
from rayrec.recommendation.recommenders import Recommender, open_recommender
from rayrec.recommendation.requests import ITEMS, SESSION_ID, Requests, open_requests
from rayrec.sessions import Sessions
from rayrec.stages import SystemName
from rayrec.training.cluster import connected
from rayrec.training.model import quiet_libraries

TITLES, SCORES = "titles", c.SCORES


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a person asks for."""

    run: str  # its folder
    overrides: list[str]
    system: SystemName
    sessions: str  # a Parquet file, or a folder of them
    out: str  # the Parquet file to write
    k: int
    candidates: int | None
    titles: bool  # beside the ids


def recommend(order: Order) -> None:
    """Write SESSION_ID, ITEMS, TITLES where they are wanted, and SCORES: a row for each session, in their order.

    Raises:
        InputError: the run, the sessions and the options do not go together, or a model cannot be had; nothing is
            written.
    """
    quieten()
    run = open_run(order.run, order.overrides)
    plan = make_plan(run, order.system, order.k, order.candidates)
    requests, out = open_requests(order.sessions, run.data.folder, by_user=plan.by_user), storage.absolute(order.out)
    _check_out(out, order.sessions)
    print(f"rayrec {__version__}  {run.titles[order.system]} of {run.folder}", flush=True)
    survey = requests.survey()
    print(f"sessions  {survey}", flush=True)
    with connected(run.config.cluster):
        if order.system is SystemName.LLMSEQSIM:  # its table may be gone with the store since
            prepare_table(run.config, run.data, nearness_table(run.config))
        with storage.whole(out) as path:
            schema = lists_schema(requests, titles=order.titles)
            write_parquet(path, lists(plan, requests, survey.sessions, schema), schema)
    print(f"lists  {survey.sessions:,} of {order.k}  ->  {out}")


def lists(plan: Plan, requests: Requests, sessions: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """The lists for all sessions, in their order, a chunk at a time; Ray is connected.

    Raises:
        InputError: a part is damaged, or a model cannot be had.
    """
    chunks = partial(requests.chunks, plan.chunk)
    count = -(-sessions // plan.chunk)
    return streamed(chunks, count, _Actor, (plan, schema), plan.run.config.cluster)


def lists_schema(requests: Requests, *, titles: bool) -> pa.Schema:
    """Session ids are as they came; so are item ids where they are whole numbers to the run, too, and else text."""
    sources = open_table(storage.join(requests.data, "items.parquet"))[c.SOURCE_ID]
    item = requests.item_kind if _are(sources, requests.item_kind) else pa.string()
    fields = [(SESSION_ID, requests.session_kind), (ITEMS, pa.list_(item))]
    fields += [(TITLES, pa.list_(pa.string()))] if titles else []
    return pa.schema([*fields, (SCORES, pa.list_(pa.float32()))])


def _are(sources: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """Whether whole numbers of this kind stand for all source ids."""
    try:
        return bool(pa.types.is_integer(kind) and sources.cast(kind).cast(pa.string()).equals(sources))
    except pa.ArrowInvalid:
        return False


def _check_out(out: str, sessions: str) -> None:
    given = storage.absolute(sessions)
    if storage.is_folder(out):
        raise InputError(f"--out {out}: a folder; name the file to write")
    if out == given or (storage.is_folder(given) and out.startswith(f"{given}/")):
        raise InputError(f"--out {out}: among the sessions that are read; write it elsewhere")
    storage.check_writable(out.rpartition("/")[0], "--out")


class _Actor:
    """One actor."""

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
