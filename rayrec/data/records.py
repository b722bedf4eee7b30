"""Files of one record a line: JSON, or a dictionary as Python prints it, which UCSD's files called JSON are.

Nothing of them is run. A file is read once and the fields asked for are kept in the cache as Parquet: Python's literals
take longer to parse than all that follows.
"""

import ast
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.cache import built, cache_folder, file_sha256
from rayrec.data.scan import Parquet, require_file
from rayrec.errors import InputError

_FORM: Final = "records-1"  # of what is kept; another name where it changes
_KEPT: Final = "fields.parquet"
_LINE: Final = "line"
_BLOCK_LINES: Final = 8192
_MOST: Final = 1 << 24  # bytes of a line: far beyond any review
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True)
class Records:
    """The kept fields of a file, as text: a source of rows that are still text."""

    path: Path
    kept: Path

    def columns(self) -> list[str]:
        return [name for name in self._fields.columns() if name != _LINE]

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        return self._fields.blocks(names)

    def where(self, row: int) -> str:
        return f"line {pq.read_table(self.kept, columns=[_LINE])[_LINE][row]}"

    @property
    def _fields(self) -> Parquet:
        return Parquet(self.kept)


def open_records(path: Path, names: Sequence[str]) -> Records:
    """The file ``path``, gzipped or not, by its fields ``names``; a field that a record lacks is null.

    Raises:
        InputError: no such file, an empty one, one that is damaged or cut short; a line that is no record; a field
            that no record has.
    """
    require_file(path)
    cache = cache_folder().expanduser().resolve()  # a task that reads it has another working directory
    key = f"{_FORM}/{file_sha256(path)}-{'-'.join(names)}"
    return Records(path, built(cache, key, partial(_store, path, tuple(names))) / _KEPT)


def _store(path: Path, names: tuple[str, ...], folder: Path) -> None:
    found: dict[str, None] = {}
    schema = pa.schema([*((name, pa.string()) for name in names), (_LINE, pa.int64())])
    with _opened(path) as file, pq.ParquetWriter(folder / _KEPT, schema, compression="zstd") as writer:
        records = _records(path, file)
        while block := list(itertools.islice(records, _BLOCK_LINES)):
            for _, record in block:
                found.update(dict.fromkeys(record))
            columns = [_column(record.get(name) for _, record in block) for name in names]
            writer.write_table(pa.table([*columns, pa.array([line for line, _ in block])], schema=schema))
    if missing := [name for name in names if name not in found]:
        shown = ", ".join(str(name)[:40] for name in list(found)[:20]) or "no record"
        raise InputError(f"{path}: no record has a field {missing[0]!r}; found: {shown}; check data.sources")


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        is_gzip = file.read(len(_GZIP)) == _GZIP
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


def _records(path: Path, file: gzip.GzipFile | io.BufferedReader) -> Iterator[tuple[int, dict[Any, Any]]]:
    """(line, record) of every line that is not blank."""
    try:
        for number, line in enumerate(iter(partial(file.readline, _MOST), b""), start=1):
            if len(line) == _MOST:
                raise InputError(f"{path}, line {number}: longer than {_MOST} bytes; expected one record a line")
            if line.strip():
                yield number, _record(line, f"{path}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); get it again") from None


def _record(line: bytes, place: str) -> dict[Any, Any]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 ({error.reason}); get the file again") from None
    for parse in _PARSERS:
        try:
            record = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what hostile literals raise
            continue
        if isinstance(record, dict):
            return record
    raise InputError(f"{place}: no record, neither as JSON nor as a Python dictionary; mend or remove the line")


_PARSERS: Final[tuple[Callable[[str], Any], ...]] = (json.loads, lambda text: ast.literal_eval(text.strip()))


def _column(values: Iterable[Any]) -> pa.Array:
    texts = [_text(value) for value in values]
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # halves of a character, each written on its own
        whole = (text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts)
        return pa.array(list(whole), pa.string())


def _text(value: Any) -> str | None:
    """Null where there is nothing; a whole number without the ``.0`` that pandas puts on it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
