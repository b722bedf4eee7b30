"""Where a system's scores or lists lie, read and written whole."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.plan import Ids
from rayrec.evaluation.sample import rows_of
from rayrec.run import Run
from rayrec.systems import SystemName
from rayrec.training.evaluate import Scores


def predictions_path(run: Run, system: SystemName) -> str:
    """Where a system's predictions lie (PREDICTIONS_SCHEMA; of next items, LISTS_SCHEMA)."""
    return run.path("predictions", f"{system}.parquet")


def choice_path(run: Run, system: SystemName) -> str:
    """Where it says what validation rows chose for a system that joins others: name -> number."""
    return run.path("predictions", f"{system}.json")


def read_predictions(run: Run, system: SystemName) -> pd.DataFrame:
    """The scored rows, or the lists, of one system."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(predictions_path(run, system))))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def write_scores(run: Run, split: str, path: str, ids: Ids, scores: Scores) -> None:
    """Write scored rows of a split (PREDICTIONS_SCHEMA)."""
    table = rows_of(run, split).frame(ids).append_column(c.SCORE, pa.array(scores, pa.float64()))
    _write(path, table.select(c.PREDICTIONS_SCHEMA.names).cast(c.PREDICTIONS_SCHEMA))


def write_lists(run: Run, path: str, ids: Ids, lists: pa.Table) -> None:
    """Write lists for test rows (LISTS_SCHEMA; of answers in words, ANSWERS_SCHEMA)."""
    rows = rows_of(run, "test").frame(ids)
    held_out = pa.ListArray.from_arrays(pa.array(np.arange(len(ids) + 1), pa.int32()), rows[c.ITEM_ID].combine_chunks())
    schema = c.ANSWERS_SCHEMA if c.SAID in lists.column_names else c.LISTS_SCHEMA
    columns = {name: lists[name] for name in schema.names if name in lists.column_names}
    _write(path, pa.table({c.USER_ID: rows[c.USER_ID], c.HELD_OUT: held_out, **columns}).cast(schema))


def _write(path: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(path, sink.getvalue().to_pybytes())
