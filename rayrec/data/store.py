"""Random access to prepared Parquet: each node keeps a memory-mapped Arrow copy in its cache, made on first use.

Parquet is what a run leaves behind; it is decoded by row group, so reading 16 scattered rows would read all of it.
"""

import uuid
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rayrec.config import fingerprint
from rayrec.sources import cache_folder

_BLOCK_ROWS = 65_536


@lru_cache(maxsize=16)
def open_table(uri: str) -> pa.Table:
    """The Parquet file at ``uri`` as a memory-mapped table: the operating system holds the pages, not this process."""
    filesystem, path = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    info = filesystem.get_file_info(path)
    key = fingerprint([uri, info.size, info.mtime_ns])[:32]
    local = cache_folder() / "rows" / f"{key}.arrow"
    if not local.is_file():
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f"{key}.{uuid.uuid4().hex[:8]}.partial")
        _copy(pq.ParquetFile(path, filesystem=filesystem), partial)
        partial.replace(local)
    return pa.ipc.open_file(pa.memory_map(str(local))).read_all()


def _copy(parquet: pq.ParquetFile, target: Path) -> None:
    try:
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(batch_size=_BLOCK_ROWS):
                writer.write_batch(batch)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
