"""The files that a preparation leaves: the same rows give the same bytes."""

from collections.abc import Iterable, Iterator
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
        cast = (table.select(schema.names).cast(schema) for table in pieces)
        for group in of_size(cast, ROW_GROUP):
            writer.write_table(group, ROW_GROUP)


def of_size(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``rows``; the last has what is left."""
    rest: pa.Table | None = None
    for table in pieces:
        rest = table if rest is None else pa.concat_tables([rest, table])
        whole = len(rest) - len(rest) % rows
        for start in range(0, whole, rows):
            yield rest.slice(start, rows).combine_chunks()
        rest = rest.slice(whole)
    if rest is not None and len(rest):
        yield rest.combine_chunks()


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
