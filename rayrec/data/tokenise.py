"""Prompts of every prepared row, tokenised once and stored beside the rows, in their order."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from rayrec import storage
from rayrec.config.data import DataConfig
from rayrec.data import columns as c
from rayrec.data.asked import ASKED_SPLITS
from rayrec.data.beside import Beside
from rayrec.data.blocks import calm_ray_data
from rayrec.data.prompts import PromptEncoder, Tokenizer
from rayrec.data.rows import HISTORY, OpenRows, RowSource
from rayrec.data.store import open_table
from rayrec.stages import Stream, Task

_BLOCK_ROWS = 4096


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside a backbone."""
    from transformers import AutoTokenizer  # noqa: PLC0415  (seconds to import)

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def open_encoder(folder: str, data: DataConfig, tokenizer: Tokenizer) -> PromptEncoder:
    """The prompt encoder of the prepared data's catalogue."""
    titles = open_table(storage.join(folder, "items.parquet"))[c.TITLE].to_pylist()
    return PromptEncoder(tokenizer, titles, data.title_chars)


def prompt_rows(folder: str, split: str, data: DataConfig) -> OpenRows:
    """The rows of a split that prompts are written for, with histories as long as a prompt shows."""
    beside = {Beside.ASKED} if data.task is Task.NEXT_ITEM else set()
    return RowSource(folder, split, Stream.INTERACTIONS, data.history, frozenset(beside)).open()


def write_prompts(folder: str, data: DataConfig, tokenizer: Tokenizer, scratch: Path) -> None:
    """Write the prompts of each split beside the rows in ``folder``; of next items, of the rows asked about."""
    encoder = ray.put(open_encoder(folder, data, tokenizer))
    tokens: dict[str, Any] = {}
    with calm_ray_data():
        for split in ASKED_SPLITS if data.task is Task.NEXT_ITEM else c.SPLITS:
            tokens[split] = _write_split(scratch / f"{split}.parquet", _encoded(folder, split, data, encoder))
    Beside.PROMPTS.publish(folder, scratch, tokens=tokens)


def _encoded(folder: str, split: str, data: DataConfig, encoder: Any) -> Iterator[pa.Table]:
    rows = len(prompt_rows(folder, split, data))
    numbers = ray.data.range(rows, override_num_blocks=-(-rows // _BLOCK_ROWS))
    encoded = numbers.map_batches(
        _encode,  # type: ignore[arg-type]  # its types know no further arguments
        fn_args=(folder, split, data, encoder),
        batch_size=_BLOCK_ROWS,
    )
    return iter(encoded.iter_batches(batch_size=_BLOCK_ROWS, batch_format="pyarrow"))


def _encode(numbers: dict[str, Any], folder: str, split: str, data: DataConfig, encoder: Any) -> pa.Table:
    return encoded_rows(ray.get(encoder), prompt_rows(folder, split, data).fetch(np.asarray(numbers["id"])))


def encoded_rows(prompts: PromptEncoder, rows: pa.Table) -> pa.Table:
    """The prompts (PROMPTS_SCHEMA) of rows that were fetched with the history that they show."""
    encoded = [
        prompts.encode(history, item)
        for history, item in zip(rows[HISTORY].to_pylist(), rows[c.ITEM_ID].to_pylist(), strict=True)
    ]
    columns = {
        c.TEXT_TOKENS: _lists([e.text for e in encoded]),
        c.HYBRID_TOKENS: _lists([e.hybrid for e in encoded]),
        c.USER_AT: pa.array([e.user_at for e in encoded], pa.int32()),
        c.ITEM_AT: pa.array([e.item_at for e in encoded], pa.int32()),
        c.TITLE_AT: pa.array([e.title_at for e in encoded], pa.int32()),
        c.TEXT_TITLE_AT: pa.array([e.text_title_at for e in encoded], pa.int32()),
    }
    return pa.table(columns, schema=c.PROMPTS_SCHEMA)


def _lists(rows: list[list[int]]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    values = np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _write_split(path: Path, tables: Iterator[pa.Table]) -> dict[str, int]:
    """Write the tables as they come and count their tokens."""
    counts = {"rows": 0, c.TEXT_TOKENS: 0, c.HYBRID_TOKENS: 0}
    with pq.ParquetWriter(path, c.PROMPTS_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(c.PROMPTS_SCHEMA))
            counts["rows"] += table.num_rows
            for name in (c.TEXT_TOKENS, c.HYBRID_TOKENS):
                counts[name] += sum(len(chunk.flatten()) for chunk in table[name].chunks)
    return counts
