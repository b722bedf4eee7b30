"""The whole job: look through the sessions, rank for them with Ray Data actors, write the lists whole or not at all."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from rayrec import __version__, storage
from rayrec.actors import streamed
from rayrec.data import columns as c
from rayrec.data.files import write_parquet
from rayrec.data.store import open_table
from rayrec.errors import InputError
from rayrec.names.tables import nearness_table
from rayrec.pipeline import quieten
from rayrec.preparation import prepare_table
from rayrec.recommendation.actor import SCORES, TITLES, ListActor
from rayrec.recommendation.plan import make_plan, open_run
from rayrec.recommendation.recommenders import Plan
from rayrec.recommendation.requests import ITEMS, SESSION_ID, Requests, open_requests
from rayrec.systems import SystemName
from rayrec.training.cluster import connected


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
    return streamed(chunks, count, ListActor, (plan, schema), plan.run.config.cluster)


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
