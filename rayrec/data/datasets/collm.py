"""CoLLM's files: pickled DataFrames that come split and labelled, with histories and warm marks of their own.

Zhang et al., "CoLLM: Integrating Collaborative Embeddings into Large Language Models for Recommendation" (2023),
https://github.com/zyang1580/CoLLM. Columns: uid, iid, label, timestamp, his (liked items before the row, oldest first,
behind a padding of 0), his_title, title, and not_cold (1 warm, 0 cold), which a file may lack.

A pickle is read once, without running it, and kept in the cache as Parquet, so that passes over it are cheap.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.cache import built, cache_folder, file_sha256
from rayrec.config.data import SplitFilesConfig
from rayrec.data.columns import GIVEN_SCHEMA, RAW_ITEM_SCHEMA, ROW, SPLITS
from rayrec.data.datasets.raw import GivenSplit, RawDataset, hashes
from rayrec.data.datasets.values import Place, numbers, text, times
from rayrec.data.frames import Column, read_frame
from rayrec.errors import InputError

_COLUMNS: Final = ("uid", "iid", "label", "timestamp", "his", "his_title", "title")
_WARM: Final = "not_cold"
_NUMBERS: Final = (*_COLUMNS[:4], _WARM)
_FLAGS: Final = pa.array([0.0, 1.0, None])
_ROWS, _TITLES = "rows.parquet", "titles.parquet"  # what a file becomes
_FORM: Final = "collm-1"  # of these two; another name where they change
_STORED = pa.schema([field for field in GIVEN_SCHEMA if field.name != ROW])
_BLOCK_ROWS = 8192
_MOST = 1 << 27  # entries of the histories of a file, characters of its titles: far beyond any real one


def open_collm(folder: Path, files: SplitFilesConfig) -> RawDataset:
    """The three files in ``folder``, read and checked.

    Raises:
        InputError: a file is not there, is no pickled table, or has a wrong row.
    """
    paths = tuple(folder / getattr(files, split) for split in SPLITS)
    for split, path in zip(SPLITS, paths, strict=True):
        if not path.is_file():
            raise InputError(_missing(folder, split, path))
    cache = cache_folder().expanduser().resolve()  # a task that reads it has another working directory
    stored = [built(cache, f"{_FORM}/{file_sha256(path)}", partial(_store, path)) for path in paths]
    train, valid, _ = (pq.read_metadata(place / _ROWS).num_rows for place in stored)
    rows = partial(_read_rows, tuple(place / _ROWS for place in stored))
    titles = partial(_read_titles, tuple(place / _TITLES for place in stored))
    return RawDataset("collm", rows, titles, hashes(paths), GivenSplit(paths, (train, train + valid)))


def _missing(folder: Path, split: str, path: Path) -> str:
    found = ", ".join(sorted(other.name for other in folder.glob("*"))[:8]) or "nothing"
    return (
        f"{folder}: no {path.name}, which data.split_files.{split} names; found {found}; another file may stand in"
        f" for it: --set data.split_files.{split}=NAME"
    )


def _read_rows(paths: Sequence[Path]) -> Iterator[pa.Table]:
    row = 0
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BLOCK_ROWS):
            block = pa.Table.from_batches([batch]).append_column(ROW, pa.array(np.arange(row, row + len(batch))))
            yield block.select(GIVEN_SCHEMA.names)
            row += len(batch)


def _read_titles(paths: Sequence[Path]) -> Iterator[pa.Table]:
    for path in paths:
        yield pq.read_table(path)


# --- from a pickle to Parquet


@dataclass(frozen=True)
class _File:
    """A pickle, whose rows a person counts from 1."""

    path: Path

    def where(self, row: int) -> str:
        return f"row {row + 1}"

    def refuse(self, wrong: Iterable[bool], problem: str, first: int = 0) -> None:
        """Raises ``InputError`` for the first row that is ``wrong``; they start at row ``first``."""
        if (row := next((row for row, is_wrong in enumerate(wrong, start=first) if is_wrong), None)) is not None:
            raise InputError(f"{self.path}, {self.where(row)}: {problem}")


def _store(path: Path, folder: Path) -> None:
    """Writes the rows and the titles of the pickle ``path`` into ``folder``."""
    columns, file = read_frame(path, _COLUMNS, (_WARM,)), _File(path)
    rows = len(columns["uid"])
    if not rows:
        raise InputError(f"{path}: no rows in this file; get it again")
    _check(columns, file)
    with pq.ParquetWriter(folder / _ROWS, _STORED, compression="zstd") as writer:
        for first in range(0, rows, _BLOCK_ROWS):
            block = {name: column[first : first + _BLOCK_ROWS] for name, column in columns.items()}
            writer.write_table(_rows(block, first, file))
    pq.write_table(_titles(columns, file), folder / _TITLES)


def _check(columns: dict[str, Column], file: _File) -> None:
    """That numbers are numbers, and lists are lists of what they should hold, of bounded length all together.

    Before anything is made of them: a file may point at one list again and again.
    """
    for name in _NUMBERS:
        if name in columns and columns[name].dtype.hasobject:
            raise InputError(f"{file.path}: column {name!r} does not hold numbers")
    history, titles = columns["his"].tolist(), columns["his_title"].tolist()
    file.refuse((type(value) not in (str, float, NoneType) for value in columns["title"].tolist()), "title is no text")
    for name, lists, kind, words in (("his", history, int, "whole numbers"), ("his_title", titles, str, "text")):
        file.refuse((type(value) not in (list, tuple) for value in lists), f"{name} is no list")
        if sum(map(len, lists)) > _MOST:
            raise InputError(f"{file.path}: {name} holds more than {_MOST} entries all together; this is no real file")
        if set(map(type, itertools.chain.from_iterable(lists))) - {kind}:
            file.refuse(
                (bool(set(map(type, value)) - {kind}) for value in lists), f"{name} holds something else than {words}"
            )
    lengths = zip(map(len, history), map(len, titles), strict=True)
    file.refuse((items != names for items, names in lengths), "his and his_title differ in length")


def _rows(block: dict[str, Column], first: int, file: _File) -> pa.Table:
    """Rows of ``_STORED``; ``first`` is the number of the first."""
    given = {name: pa.chunked_array([pa.array(block[name], from_pandas=True)]) for name in block if name in _NUMBERS}
    flags = {}
    for name in ("label", _WARM):
        if name in given:
            place = Place(file, first, name)
            flags[name] = numbers(given[name], place)
            place.refuse(pc.invert(pc.is_in(flags[name], _FLAGS)), flags[name], "is neither 0 nor 1")
    item = Place(file, first, "iid")
    item.refuse(pc.less(numbers(given["iid"], item), 1), given["iid"], "is no item: ids start at 1, 0 is padding")
    columns = [
        text(given["uid"]),
        text(given["iid"]),
        flags["label"].cast(pa.float32()),
        times(given["timestamp"], Place(file, first, "timestamp")).cast(pa.int64()),
        _histories(block["his"].tolist(), first, file),
        flags[_WARM].cast(pa.bool_()) if _WARM in flags else pa.nulls(len(block["uid"]), pa.bool_()),
    ]
    return pa.table(columns, schema=_STORED)


def _histories(lists: list[list[int]], first: int, file: _File) -> pa.ListArray:
    """Ids as text, without the padding."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    try:
        items = np.fromiter(itertools.chain.from_iterable(lists), np.int64, lengths.sum())
    except OverflowError:
        raise InputError(f"{file.path}: his holds a number beyond 64 bits, which is no item") from None
    starts, row = np.cumsum(lengths) - lengths, np.repeat(np.arange(len(lists)), lengths)
    padding = np.bincount(row[items == 0], minlength=len(lists))
    wrong = (items < 0) | ((items == 0) & (np.arange(len(items)) - starts[row] >= padding[row]))
    file.refuse(np.bincount(row[wrong], minlength=len(lists)) > 0, "his holds no item behind an item", first)
    offsets = np.concatenate([[0], np.cumsum(lengths - padding)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(items[items > 0]).cast(pa.string()))


def _titles(columns: dict[str, Column], file: _File) -> pa.Table:
    """Every (item, title) pair once, those of the rows before those of histories."""
    named = zip(columns["iid"].tolist(), columns["title"].tolist(), strict=True)
    past = (itertools.chain.from_iterable(columns[name].tolist()) for name in ("his", "his_title"))
    pairs = dict.fromkeys(pair for pair in itertools.chain(named, zip(*past, strict=True)) if pair[0])
    if sum(len(title) for _, title in pairs if isinstance(title, str)) > _MOST:
        raise InputError(f"{file.path}: its titles hold more than {_MOST} characters; this is no real file")
    try:
        items = pa.array([item for item, _ in pairs], from_pandas=True)
        titles = pa.array([title for _, title in pairs], pa.string(), from_pandas=True)
    except UnicodeEncodeError as error:
        raise InputError(f"{file.path}: a title is not UTF-8 ({error}); get the file again") from None
    return pa.table([text(pa.chunked_array([items])), titles], schema=RAW_ITEM_SCHEMA)
