"""Three ways a table lies on disk, read as blocks of columns that are still text, in bounded memory.

Each source yields ``pyarrow`` tables with the columns asked for and says where a row stands, so that an error can name
the line that an editor shows. The line is looked for only once there is an error: reading stays vectorised.
"""

import contextlib
import csv
import difflib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from rayrec.data.columns import CUT_SHORT
from rayrec.errors import InputError

BLOCK_ROWS = 65_536
CSV_BLOCK_BYTES = 4 << 20  # about as many rows; no row may be longer
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


class Source(Protocol):
    """A table on disk. ``columns`` names the columns found; rows are counted from 0 over the whole file."""

    @property
    def path(self) -> Path: ...

    def columns(self) -> list[str]: ...

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]: ...

    def where(self, row: int) -> str:
        """``row`` as a person finds it: ``line 7``, counted from 1 with the header, or ``row 7`` of a Parquet file."""
        ...


def open_source(path: Path) -> Source:
    """The source of a CSV, TSV or Parquet file, told by its suffix.

    Raises:
        InputError: no such file, an empty file, or another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS and suffix != ".parquet":
        raise InputError(f"{path}: unknown suffix {suffix!r}; use a .csv, .tsv, .txt (tab separated) or .parquet file")
    require_file(path)
    return Parquet(path) if suffix == ".parquet" else Delimited(path, _DELIMITERS[suffix])


def require_file(path: Path) -> None:
    """Raises ``InputError`` unless ``path`` is a file with content."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; check data.sources")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; fetch or export it again")


def require_columns(source: Source, names: Sequence[str], setting: str) -> None:
    """Raises ``InputError`` unless every one of ``names`` is a column, once; ``setting`` is the key that names them."""
    found = source.columns()
    for name in names:
        if found.count(name) == 1:
            continue
        if name in found:
            raise InputError(f"{source.path}: column {name!r} occurs {found.count(name)} times; rename all but one")
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]!r}?" if near else "name yours"
        raise InputError(f"{source.path}: no column {name!r}; {mend} Set {setting}; found: {', '.join(found)}")


def _not_text(path: Path, encoding: str) -> InputError | None:
    """The error of the first byte that is not ``encoding``, or None."""
    before = 0
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            try:
                content.decode(encoding)
            except UnicodeDecodeError as error:
                at = before + error.start
                return InputError(
                    f"{path}, line {line}: byte 0x{content[error.start]:02x} at position {at} of the file is not "
                    f"{encoding.upper()}, the encoding expected here; save the file as {encoding.upper()}"
                )
            before += len(content)
    return None


def _wrong_width(path: Path, place: str, found: int, expected: int) -> InputError:
    return InputError(f"{path}, {place}: {found} fields where {expected} were expected; mend or remove the row")


@dataclass(frozen=True)
class Lines:
    """Text without quoting, one row a line: the layouts of GroupLens (``names`` given) and RecBole (header line).

    ``names`` are those of the first columns; further columns are allowed as long as every line has the same number.
    A RecBole header says ``name:type``; the type is dropped.
    """

    path: Path
    separator: str
    encoding: str  # "latin-1" or "utf-8"; a byte order mark is skipped
    names: tuple[str, ...] | None = None

    def columns(self) -> list[str]:
        if self.names is not None:
            return list(self.names)
        header = next(self._lines(), pa.array([], pa.string()))
        return [name.partition(":")[0] for name in header[0].as_py().split(self.separator)] if len(header) else []

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        columns, width, row = self.columns(), None, 0
        for lines in self._lines(skip_header=self.names is None):
            fields = pc.split_pattern(lines, self.separator)
            widths = pc.list_value_length(fields)
            if width is None:
                width = max(len(columns), widths[0].as_py()) if self.names else len(columns)
            wrong = pc.index(pc.not_equal(widths, width), True).as_py()
            if wrong >= 0:
                raise _wrong_width(self.path, self.where(row + wrong), widths[wrong].as_py(), width)
            yield pa.table({name: pc.list_element(fields, columns.index(name)) for name in names})
            row += len(lines)

    def where(self, row: int) -> str:
        with self.path.open(encoding=self.encoding) as file:
            filled = (number for number, line in enumerate(file, start=1) if line.strip())
            return f"line {next(itertools.islice(filled, row + (self.names is None), None))}"

    def _lines(self, skip_header: bool = False) -> Iterator[pa.Array]:
        """Blocks of lines that are not blank, without their ends."""
        with self.path.open(encoding="utf-8-sig" if self.encoding == "utf-8" else self.encoding) as file:
            while True:
                try:
                    lines = pa.array(itertools.islice(file, BLOCK_ROWS), pa.string())
                except UnicodeDecodeError as error:
                    raise _not_text(self.path, self.encoding) or error from None
                if not len(lines):
                    return
                lines = pc.utf8_rtrim(lines, "\n")
                lines = lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))
                if skip_header and len(lines):
                    lines, skip_header = lines[1:], False
                if len(lines):
                    yield lines


@dataclass(frozen=True)
class Delimited:
    """CSV or TSV in UTF-8; fields may be quoted and then hold delimiters and line ends.

    Without ``names`` a header line has them. With ``may_be_cut`` the file may end in the middle of its last row: if
    fields are missing there, that row comes as nulls, and a column CUT_SHORT says so. A row that is cut in its last
    field has all the others and stays.
    """

    path: Path
    delimiter: str
    may_be_cut: bool = False
    names: tuple[str, ...] | None = None

    def columns(self) -> list[str]:
        if self.names is not None:
            return list(self.names)
        with self._explained():
            return list(self._open({}, self._end()).schema.names)

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        as_text = dict.fromkeys(names, pa.string())
        end = self._end()
        with self._explained():
            for batch in self._open({"include_columns": list(names), "column_types": as_text}, end):
                block = pa.Table.from_batches([batch])
                yield block.append_column(CUT_SHORT, pa.repeat(False, len(block))) if end else block
        if end and end.is_cut:
            yield pa.table({**{name: pa.nulls(1, pa.string()) for name in names}, CUT_SHORT: [True]})

    def where(self, row: int) -> str:
        return f"line {next(itertools.islice(self._records(), row + (self.names is None), None))[0]}"

    def _end(self) -> "_End | None":
        return _End(self.path) if self.may_be_cut else None

    def _open(self, convert: dict[str, object], end: "_End | None") -> pa.csv.CSVStreamingReader:
        return pa.csv.open_csv(
            end.stream() if end else self.path,
            # One thread: the streaming reader keeps the order either way, and the cores belong to Ray's tasks.
            read_options=pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False, column_names=self.names),
            parse_options=pa.csv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=end.judge if end else None
            ),
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=False, **convert),
        )

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(first line, fields) of the header and of every row that is not blank: slow, for errors only."""
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader, line = csv.reader(file, delimiter=self.delimiter), 1
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            raise self._explain(error) from None

    def _explain(self, error: pa.ArrowInvalid) -> InputError:
        """What Arrow could not read, in the words of someone who has an editor open."""
        if unreadable := _not_text(self.path, "utf-8"):
            return unreadable
        records = self._records()
        width = len(self.names or next(records, (1, []))[1])
        for line, fields in records:
            if len(fields) != width:
                return _wrong_width(self.path, f"line {line}", len(fields), width)
        return InputError(f"{self.path}: not readable as {self.path.suffix[1:].upper()}: {error}")


class _End:
    """The end of a file that may be cut anywhere, even within a character."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, _whole_characters(path)
        self.is_cut = False  # in the middle of a row; known once all rows have been read

    def stream(self) -> pa.NativeFile:
        """The file up to its last whole character."""
        return pa.OSFile(str(self._path)).get_stream(0, self._size)

    def judge(self, row: pa.csv.InvalidRow) -> str:
        """Whether Arrow is to ``skip`` a row of another width than the header's, or to raise an ``error``."""
        content = f"\n{row.text}".encode()
        with self._path.open("rb") as file:
            file.seek(max(0, self._size - len(content)))
            is_last = file.read(len(content)) == content
        if self.is_cut or not is_last or row.actual_columns >= row.expected_columns:
            return "error"
        self.is_cut = True
        return "skip"


def _whole_characters(path: Path) -> int:
    """Bytes of a UTF-8 file without the first bytes of a character that its end cuts."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 3))
        tail = file.read()
    for count, byte in enumerate(reversed(tail), start=1):
        if byte >= 0b1100_0000:  # the first of a character of 2, 3 or 4 bytes
            return size - count if count < 2 + (byte >= 0b1110_0000) + (byte >= 0b1111_0000) else size
    return size


@dataclass(frozen=True)
class Parquet:
    """A Parquet file; its columns keep their types."""

    path: Path

    def columns(self) -> list[str]:
        return list(self._open().schema_arrow.names)

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        for batch in self._open().iter_batches(batch_size=BLOCK_ROWS, columns=list(names)):
            yield pa.Table.from_batches([batch])

    def where(self, row: int) -> str:
        return f"row {row + 1}"

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.path}: not readable as Parquet: {error}; export it again") from None
