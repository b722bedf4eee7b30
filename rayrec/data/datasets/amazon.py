"""Amazon's reviews of one category, as McAuley published them in 2014: ratings or reviews, and what the products are.

https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html. Also the table that has both joined, without times.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rayrec.config.data import ColumnMap
from rayrec.data.datasets.raw import RawDataset, find_file, hashes
from rayrec.data.datasets.tables import read_html_titles, read_interactions, read_titles
from rayrec.data.records import open_records
from rayrec.data.scan import Delimited, Parquet, Source, open_source, require_columns, require_file
from rayrec.errors import InputError

NAME: Final = "amazon-beauty"
RATINGS, REVIEWS, JOINED, PRODUCTS = "ratings_*.csv", "reviews_*.json*", "interactions.parquet", "meta_*.json*"
_ROW: Final = ("user", "item", "rating", "timestamp")
_RATED: Final = ColumnMap(user="user", item="item")
_REVIEWED: Final = ColumnMap(user="reviewerID", item="asin", rating="overall", timestamp="unixReviewTime")
_JOINED: Final = ColumnMap(user="reviewer_id", item="asin", rating=None, timestamp="pos", title="title")


def open_amazon(path: Path, item_paths: Sequence[Path], rating_range: tuple[float, float]) -> RawDataset:
    """The file ``path`` of any of the three kinds, or a folder with one of them and the products beside it.

    Raises:
        InputError: a file is missing or of another kind, or nothing says what the products are.
    """
    rows = find_file(path, (RATINGS, REVIEWS, JOINED)) if path.is_dir() else path
    if rows.suffix == ".parquet":
        require_file(rows)
        joined = Parquet(rows)
        require_columns(joined, [name for name in _JOINED.model_dump().values() if name], "data.dataset: table")
        read = partial(read_interactions, (joined,), _JOINED, rating_range)
        titles = partial(read_titles, (joined,), _JOINED.item, _JOINED.title)
        return RawDataset(NAME, read, titles, hashes([rows]), is_timed=False)
    products = item_paths[0] if item_paths else find_file(path if path.is_dir() else path.parent, (PRODUCTS,))
    source, columns = _open(rows)
    listed = open_records(products, ("asin", "title"))
    read = partial(read_interactions, (source,), columns, rating_range)
    return RawDataset(NAME, read, partial(read_html_titles, (listed,), "asin", "title"), hashes([rows, products]))


def _open(path: Path) -> tuple[Source, ColumnMap]:
    if path.suffix in (".json", ".gz"):
        names = [name for name in _REVIEWED.model_dump().values() if name]
        return open_records(path, names), _REVIEWED
    source = open_source(path)
    header = tuple(source.columns())
    if len(header) != len(_ROW):
        raise InputError(f"{path}: {len(header)} columns, expected {', '.join(_ROW)}; found: {', '.join(header)}")
    if _is_number(header[2]):  # as published; copies of the file have a header line
        return Delimited(path, ",", names=_ROW), _RATED
    return source, ColumnMap(**dict(zip(_ROW, header, strict=True)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
