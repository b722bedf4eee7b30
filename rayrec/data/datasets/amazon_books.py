"""Amazon Book Reviews as Kaggle has them (mohamedbakhet/amazon-books-reviews): ratings, and a list of books.

A book is an ``Id`` (ISBN or ASIN) with a title; the list of books knows titles alone. The text of a review is skipped
as the file streams by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config.data import ColumnMap
from rayrec.data.columns import TITLE
from rayrec.data.datasets.raw import RawDataset, hashes
from rayrec.data.datasets.tables import read_interactions, read_titles
from rayrec.data.datasets.values import text
from rayrec.data.scan import Delimited, require_file
from rayrec.errors import InputError

RATINGS, BOOKS = "Books_rating.csv", "books_data.csv"
_TITLE, _TIME = "Title", "review/time"
_COLUMNS = ColumnMap(user="User_id", item="Id", rating="review/score", timestamp=_TIME, title=_TITLE)
_UNKNOWN = "-1"  # a time that nobody knows


def open_amazon_books(path: Path, item_paths: Sequence[Path], rating_range: tuple[float, float]) -> RawDataset:
    """The ratings in ``path``, or both files in the folder ``path``.

    Where there is a list of books, a book whose title it does not have is an unknown item.
    """
    ratings = path / RATINGS if path.is_dir() else path
    lists = list(item_paths) or ([path / BOOKS] if path.is_dir() else [])
    source, books = _Csv(ratings), tuple(_Csv(file) for file in lists)
    for file, names, like in (
        (source, _COLUMNS.model_dump().values(), RATINGS),
        *((b, (_TITLE,), BOOKS) for b in books),
    ):
        require_file(file.path)
        if missing := [name for name in names if name not in file.columns()]:
            raise InputError(
                f"{file.path}: no column {missing[0]!r}, which Kaggle's {like} has; read a table of another layout"
                f" as data.dataset: table; found: {', '.join(file.columns())}"
            )
    rows = partial(read_interactions, (source,), _COLUMNS, rating_range)
    titles = partial(_titles, source, books)
    return RawDataset("amazon-books", rows, titles, hashes([ratings, *lists]))


@dataclass(frozen=True)
class _Csv:
    """One of the two files by Kaggle's column names; copies of it write ``review_score`` for ``review/score``."""

    path: Path

    def columns(self) -> list[str]:
        return [name.replace("review_", "review/") for name in self._file.columns()]

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        written = dict(zip(self.columns(), self._file.columns(), strict=True))
        for block in self._file.blocks([written[name] for name in names]):
            renamed = block.rename_columns([*names, *block.column_names[len(names) :]])
            yield _without_unknown_times(renamed) if _TIME in names else renamed

    def where(self, row: int) -> str:
        return self._file.where(row)

    @property
    def _file(self) -> Delimited:
        return Delimited(self.path, ",", may_be_cut=True)


def _without_unknown_times(block: pa.Table) -> pa.Table:
    times = block[_TIME]
    known = pc.if_else(pc.equal(times, _UNKNOWN), None, times)
    return block.set_column(block.column_names.index(_TIME), _TIME, known)


def _titles(ratings: _Csv, lists: Sequence[_Csv]) -> Iterator[pa.Table]:
    """What the ratings call their books, as far as the books are listed."""
    columns = [text(block[_TITLE]).combine_chunks() for books in lists for block in books.blocks([_TITLE])]
    known = pa.concat_arrays(columns).drop_null() if columns else None
    for block in read_titles((ratings,), _COLUMNS.item, _TITLE):
        yield block if known is None else block.filter(pc.is_in(block[TITLE], known))
