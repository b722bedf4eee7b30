"""Tables with a row for each rating, from any source: blocks of raw rows, and of titles; your own files."""

import html
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config.data import ColumnMap, DataConfig
from rayrec.data.columns import CUT_SHORT, ITEM_ID, RAW_ITEM_SCHEMA, RAW_SCHEMA, TITLE
from rayrec.data.datasets.raw import RawDataset, hashes
from rayrec.data.datasets.values import Place, ratings, text, times
from rayrec.data.scan import Source, open_source, require_columns
from rayrec.errors import InputError

ReadTimes = Callable[[pa.ChunkedArray, Place], pa.ChunkedArray]  # a column to whole seconds since 1970, as float64
_TITLES = ("movie_title", "title")  # of RecBole's atomic files
_YEAR = "release_year"


def open_table(data: DataConfig, paths: Sequence[Path], item_paths: Sequence[Path]) -> RawDataset:
    """Your own files, read one after the other; titles are theirs or those of ``item_paths``."""
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
    rows = partial(read_interactions, sources, columns, data.rating_range)
    return RawDataset(data.dataset, rows, titles, hashes([*paths, *item_paths]))


def read_interactions(
    sources: Sequence[Source], columns: ColumnMap, rating_range: tuple[float, float], read_times: ReadTimes = times
) -> Iterator[pa.Table]:
    """The rows of all ``sources`` as blocks of ``RAW_SCHEMA``, in the order of the files; ROW counts through them.

    Without a column of ratings every row is rated 1.

    Raises:
        InputError: a column is missing, no row is there, or a value is none of its kind: a line naming file and line.
    """
    named = (columns.user, columns.item, columns.rating, columns.timestamp)
    names = [name for name in named if name is not None]
    row = 0
    for source in sources:
        require_columns(source, names, "data.columns")
        first = row
        for block in source.blocks(names):
            place = partial(Place, source, row - first)
            rated = pa.array(np.ones(len(block)))
            if columns.rating is not None:
                rated = ratings(block[columns.rating], place(columns.rating), rating_range)
            values = [
                text(block[columns.user]),
                text(block[columns.item]),
                rated.cast(pa.float32()),
                read_times(block[columns.timestamp], place(columns.timestamp)).cast(pa.int64()),
                pa.array(np.arange(row, row + len(block))),
            ]
            raw = pa.table(values, schema=RAW_SCHEMA)
            yield raw.append_column(CUT_SHORT, block[CUT_SHORT]) if CUT_SHORT in block.column_names else raw
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
            titles = text(block[title_name])
            if years:
                titles = _with_year(titles, text(block[_YEAR]))
            pairs = pa.table([text(block[item]), titles], schema=RAW_ITEM_SCHEMA)
            yield pairs.group_by([ITEM_ID, TITLE], use_threads=False).aggregate([]).select(RAW_ITEM_SCHEMA.names)
        if not rows:
            raise InputError(f"{source.path}: no rows in this file; fetch or export it again")


def read_html_titles(sources: Sequence[Source], item: str, title: str) -> Iterator[pa.Table]:
    """The same with ``&amp;`` and its like as what they stand for."""
    for block in read_titles(sources, item, title):
        plain = [text and html.unescape(text) for text in block[TITLE].to_pylist()]
        yield block.set_column(block.column_names.index(TITLE), TITLE, pa.array(plain, pa.string()))


def _with_year(titles: pa.ChunkedArray, years: pa.ChunkedArray) -> pa.ChunkedArray:
    """Heat and 1995 give ``Heat (1995)``, unless the title says so itself or the year is none."""
    lacks = pc.invert(pc.match_substring_regex(titles, r"\(\d{4}\)$"))
    wanted = pc.and_(lacks, pc.match_substring_regex(years, r"^\d{4}$"))
    return pc.if_else(pc.fill_null(wanted, False), pc.binary_join_element_wise(titles, " (", years, ")", ""), titles)
