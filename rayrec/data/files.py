"""The files that a preparation leaves: the same rows give the same bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.data.columns import ITEM_ID, ITEMS_SCHEMA, TITLE

ROW_GROUP: Final = 8192
Manifest = dict[str, Any]


def write_parquet(path: Path, pieces: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Row groups of exactly ROW_GROUP rows, whatever the sizes of the ``pieces``."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rest = schema.empty_table()
        for table in pieces:
            rest = pa.concat_tables([rest, table.select(schema.names).cast(schema)])
            whole = len(rest) - len(rest) % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                writer.write_table(rest.slice(start, ROW_GROUP).combine_chunks(), ROW_GROUP)
            rest = rest.slice(whole)
        if len(rest):
            writer.write_table(rest.combine_chunks(), ROW_GROUP)


def write_items(path: Path, sources: pa.Array, titles: pa.Table) -> int:
    """The items in the order of their ids; returns how many had no title."""
    found = titles[TITLE].take(pc.index_in(sources, titles[ITEM_ID].combine_chunks()))
    shown = pc.if_else(pc.is_valid(found), found, untitled(sources))
    ids = pa.array(np.arange(1, len(sources) + 1, dtype=np.int32))
    write_parquet(path, [pa.table([ids, sources, shown], schema=ITEMS_SCHEMA)], ITEMS_SCHEMA)
    return int(found.null_count)


def untitled(sources: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """What items without a title are called, from their source ids."""
    return pc.binary_join_element_wise("Untitled", sources, " ")


def write_text(path: Path, text: str) -> None:
    """In one step: complete or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
