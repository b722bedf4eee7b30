"""From source files to raw interactions and titles: which layout lies in a folder, and what a valid value is.

Neither torch nor ray: the readers are plain generators of ``pyarrow`` tables, so that Ray Data can run them in a task.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config.data import ColumnMap, DataConfig
from rayrec.data import synthetic
from rayrec.data.columns import ITEM_ID, RATING, RAW_ITEM_SCHEMA, RAW_SCHEMA, TIMESTAMP, TITLE, USER_ID
from rayrec.data.scan import Lines, Source, open_source, require_columns, require_file
from rayrec.errors import InputError

_EXACT = 2**53  # up to here float64 holds every whole number
_YEAR_2100 = 4_102_444_800  # seconds; what is later is milliseconds
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
_NULLS = pa.array(["", "na", "n/a", "nan", "none", "null"])  # of a number; an id may well be called "NA"
_TITLES = ("movie_title", "title")  # of RecBole's atomic files
_YEAR = "release_year"


@dataclass(frozen=True)
class RawDataset:
    """What ``prepare`` reads. Both callables can be pickled and called again; every call starts from the first row."""

    name: str
    interactions: Callable[[], Iterator[pa.Table]]  # blocks of RAW_SCHEMA; null where a value is missing
    items: Callable[[], Iterator[pa.Table]]  # blocks of RAW_ITEM_SCHEMA; an item may occur more than once
    sha256: Mapping[str, str]  # file name -> hash (hex) of every source file


@dataclass(frozen=True)
class Layout:
    """A pair of file names in a folder and how they are read."""

    interactions: str
    items: str
    open_interactions: Callable[[Path], Source]
    open_items: Callable[[Path], Source]


_ROW = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
_ITEM = (ITEM_ID, TITLE)


def _lines(separator: str, encoding: str, names: tuple[str, ...] | None = None) -> Callable[[Path], Source]:
    return lambda path: Lines(path, separator, encoding, names)


LAYOUTS = (
    Layout(
        "u.data",
        "u.item",
        _lines("\t", "utf-8", _ROW),
        _lines("|", "latin-1", _ITEM),
    ),
    Layout(
        "ratings.dat",
        "movies.dat",
        _lines("::", "latin-1", _ROW),
        _lines("::", "latin-1", _ITEM),
    ),
    Layout("*.inter", "*.item", _lines("\t", "utf-8"), _lines("\t", "utf-8")),
)


def open_dataset(data: DataConfig, seed: int, paths: Sequence[Path], item_paths: Sequence[Path]) -> RawDataset:
    """The dataset that ``data`` names, from local files.

    Args:
        seed: of ``synthetic``, which needs no paths.
        paths: MovieLens: the folder. ``table``: the interactions; several files are read one after the other.
        item_paths: ``table`` only: the items files; without any, titles come from ``data.columns.title``.

    Raises:
        InputError: a file is missing, empty or of an unknown kind. Wrong rows raise it when they are read.
    """
    if data.dataset == "synthetic":
        make = partial(synthetic.interactions, data.synthetic, seed)
        return RawDataset(data.dataset, make, partial(synthetic.items, data.synthetic), {})
    if data.dataset == "table":
        sources, titles, files = _open_table(data, paths, item_paths)
    else:
        sources, titles, files = _open_folder(data.dataset, paths[0])
    columns = data.columns if data.dataset == "table" else ColumnMap()
    read = partial(read_interactions, sources, columns, data.rating_range)
    return RawDataset(data.dataset, read, titles, _hashes(files))


_Opened = tuple[tuple[Source, ...], Callable[[], Iterator[pa.Table]], list[Path]]


def _open_folder(dataset: str, folder: Path) -> _Opened:
    """The first layout in ``folder``, or in the folder named like the dataset inside it, as archives unpack."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; data.sources must lead to the folder of {dataset}")
    for place in (folder, folder / dataset):
        for layout in LAYOUTS:
            if interactions := sorted(place.glob(layout.interactions)):
                items = sorted(place.glob(layout.items)) or [place / layout.items.replace("*", interactions[0].stem)]
                if len(interactions) > 1 or len(items) > 1:
                    raise InputError(
                        f"{place}: more than one {layout.interactions} or {layout.items}; keep one of each"
                    )
                require_file(interactions[0])
                require_file(items[0])
                titles = partial(read_titles, (layout.open_items(items[0]),))
                return (layout.open_interactions(interactions[0]),), titles, [*interactions, *items]
    layouts = ", or ".join(f"{layout.interactions} and {layout.items}" for layout in LAYOUTS)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder}: no {dataset} here: expected {layouts}; found {found}; check data.sources")


def _open_table(data: DataConfig, paths: Sequence[Path], item_paths: Sequence[Path]) -> _Opened:
    columns, item_columns = data.columns, data.item_columns
    sources = tuple(open_source(path) for path in paths)
    if item_paths:
        item_sources = tuple(open_source(path) for path in item_paths)
        titles = partial(read_titles, item_sources, item_columns.item, item_columns.title, "data.item_columns")
    elif columns.title is not None:
        titles = partial(read_titles, sources, columns.item, columns.title, "data.columns")
    else:
        raise InputError(
            f"{paths[0]}: nothing says where titles come from; set data.columns.title to a column of this file, "
            "or data.item_sources to your items file"
        )
    return sources, titles, [*paths, *item_paths]


def read_interactions(
    sources: Sequence[Source], columns: ColumnMap, rating_range: tuple[float, float]
) -> Iterator[pa.Table]:
    """The rows of all ``sources`` as blocks of ``RAW_SCHEMA``, in the order of the files; ROW counts through them.

    Raises:
        InputError: a column is missing, no row is there, or a value is none of its kind: a line naming file and line.
    """
    names = (columns.user, columns.item, columns.rating, columns.timestamp)
    row = 0
    for source in sources:
        require_columns(source, names, "data.columns")
        first = row
        for block in source.blocks(names):
            user, item, rating, time = (block[name] for name in names)
            place = partial(_Place, source, row - first)
            rows = pa.array(np.arange(row, row + len(block)))
            values = [
                _text(user),
                _text(item),
                _ratings(rating, place(columns.rating), rating_range).cast(pa.float32()),
                _times(time, place(columns.timestamp)).cast(pa.int64()),
                rows,
            ]
            yield pa.table(values, schema=RAW_SCHEMA)
            row += len(block)
        if row == first:
            raise InputError(f"{source.path}: no rows in this file; fetch or export it again")


def read_titles(
    sources: Sequence[Source], item: str = ITEM_ID, title: str | None = None, setting: str = "data.sources"
) -> Iterator[pa.Table]:
    """The (item, title) pairs of all ``sources``, each pair once a block, as blocks of ``RAW_ITEM_SCHEMA``.

    ``setting`` is the key that names the columns. Without a name (``None``) the title is that of a MovieLens layout,
    and a release year goes behind it.

    Raises:
        InputError: a column is missing or no row is there.
    """
    for source in sources:
        found, rows = source.columns(), 0
        title_name = next((name for name in _TITLES if name in found), _TITLES[0]) if title is None else title
        years = [_YEAR] if title is None and _YEAR in found else []
        require_columns(source, (item, title_name), setting)
        for block in source.blocks(list(dict.fromkeys((item, title_name, *years)))):
            rows += len(block)
            titles = _text(block[title_name])
            if years:
                titles = _with_year(titles, _text(block[_YEAR]))
            pairs = pa.table([_text(block[item]), titles], schema=RAW_ITEM_SCHEMA)
            yield pairs.group_by([ITEM_ID, TITLE], use_threads=False).aggregate([]).select(RAW_ITEM_SCHEMA.names)
        if not rows:
            raise InputError(f"{source.path}: no rows in this file; fetch or export it again")


def _with_year(titles: pa.ChunkedArray, years: pa.ChunkedArray) -> pa.ChunkedArray:
    """Heat and 1995 give ``Heat (1995)``, unless the title says so itself or the year is none."""
    lacks = pc.invert(pc.match_substring_regex(titles, r"\(\d{4}\)$"))
    wanted = pc.and_(lacks, pc.match_substring_regex(years, r"^\d{4}$"))
    return pc.if_else(pc.fill_null(wanted, False), pc.binary_join_element_wise(titles, " (", years, ")", ""), titles)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed text, null where blank. Whole numbers lose a ``.0``: pandas puts it on ids beside a missing one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(column, pc.floor(column))).as_py():
            column = column.cast(pa.int64())
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


@dataclass(frozen=True)
class _Place:
    """Where a block of a column stands, for errors."""

    source: Source
    first: int
    column: str

    def refuse(self, wrong: pa.ChunkedArray, values: pa.ChunkedArray, problem: str) -> None:
        """Raises ``InputError`` for the first row where ``wrong`` holds; a null holds nowhere."""
        at = pc.index(wrong, True).as_py()
        if at >= 0:
            value = values[at].as_py()
            shown = int(value) if isinstance(value, float) and value.is_integer() else value
            place = f"{self.source.path}, {self.source.where(self.first + at)}"
            raise InputError(f"{place}: {self.column} {shown!r} {problem}")


def _numbers(column: pa.ChunkedArray, place: _Place) -> pa.ChunkedArray:
    """float64, null where missing."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.is_in(pc.utf8_lower(column), _NULLS), None, column)
        try:
            return column.cast(pa.float64())
        except pa.ArrowInvalid:
            place.refuse(pa.array([not _is_number(text) for text in column.to_pylist()]), column, "is not a number")
            raise
    kind = column.type
    if not any(holds(kind) for holds in _NUMBERS):
        raise InputError(f"{place.source.path}: column {place.column!r} holds {kind}, not numbers")
    if kind in (pa.int64(), pa.uint64()):
        place.refuse(_inexact(column), column, "is too large to be held exactly; give times in seconds since 1970")
    numbers = column.cast(pa.float64())
    return pc.if_else(pc.is_nan(numbers), None, numbers)


def _inexact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where whole numbers of 64 bits are none of float64's."""
    beyond = pc.greater(column, pa.scalar(_EXACT, column.type))
    return beyond if column.type == pa.uint64() else pc.or_(beyond, pc.less(column, -_EXACT))


def _is_number(text: str | None) -> bool:
    try:
        pa.scalar(text, pa.string()).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _ratings(column: pa.ChunkedArray, place: _Place, rating_range: tuple[float, float]) -> pa.ChunkedArray:
    numbers, (low, high) = _numbers(column, place), rating_range
    outside = pc.or_(pc.less(numbers, low), pc.greater(numbers, high))
    place.refuse(outside, numbers, f"lies outside data.rating_range [{low:g}, {high:g}]; mend the row or the range")
    return numbers


def _times(column: pa.ChunkedArray, place: _Place) -> pa.ChunkedArray:
    numbers = _numbers(column, place)
    late = "is after the year 2100; times are seconds since 1970: divide milliseconds by 1000"
    place.refuse(pc.less(numbers, 0), numbers, "is before 1970; times are seconds since 1970")
    place.refuse(pc.greater(numbers, _YEAR_2100), numbers, late)
    place.refuse(pc.not_equal(numbers, pc.floor(numbers)), numbers, "is not a whole number of seconds; round it")
    return numbers


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    """By name; files of the same name are told apart by their folders."""
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": file_sha256(path)
        for path in paths
    }


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
