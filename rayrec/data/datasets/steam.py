"""Steam's reviews (UCSD): https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data. A row says that a user reviewed a
game on a day. Also the table of Australian users, which has titles and, of most rows, days.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config.data import ColumnMap
from rayrec.data.datasets.raw import RawDataset, find_file, hashes
from rayrec.data.datasets.tables import read_html_titles, read_interactions
from rayrec.data.datasets.values import moments
from rayrec.data.records import Records, open_records
from rayrec.data.scan import Parquet, Source, require_columns, require_file

REVIEWS, GAMES = ("steam_reviews.json.gz", "steam_reviews.json"), ("steam_games.json.gz", "steam_games.json")
AUSTRALIAN: Final = "interactions.parquet"
_REVIEWED: Final = ColumnMap(user="username", item="product_id", rating=None, timestamp="date")
_AUSTRALIAN: Final = ColumnMap(rating=None, timestamp="ts", title="title")
_DESCRIBED: Final = ("title", "genres", "tags")


def open_steam(path: Path, item_paths: Sequence[Path], rating_range: tuple[float, float]) -> RawDataset:
    """The reviews ``path``, or a folder with them and the games.

    A game without a title, genres or tags is an unknown item, as in https://arxiv.org/abs/2402.01339.

    Raises:
        InputError: a file is missing or of another kind.
    """
    rows = find_file(path, (*REVIEWS, AUSTRALIAN)) if path.is_dir() else path
    if rows.suffix == ".parquet":
        require_file(rows)
        source: Source = Parquet(rows)
        require_columns(source, [name for name in _AUSTRALIAN.model_dump().values() if name], "data.dataset: table")
        titles = partial(read_html_titles, (source,), _AUSTRALIAN.item, "title")
        columns, files = _AUSTRALIAN, [rows]
    else:
        games = item_paths[0] if item_paths else find_file(path if path.is_dir() else path.parent, GAMES)
        columns, files = _REVIEWED, [rows, games]
        source = open_records(rows, [name for name in columns.model_dump().values() if name])
        titles = partial(read_html_titles, (_Described(open_records(games, ("id", *_DESCRIBED))),), "id", "title")
    read = partial(read_interactions, (source,), columns, rating_range, moments)
    return RawDataset("steam", read, titles, hashes(files))


@dataclass(frozen=True)
class _Described:
    """The games that have all that describes one."""

    games: Records

    @property
    def path(self) -> Path:
        return self.games.path

    def columns(self) -> list[str]:
        return self.games.columns()

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        for block in self.games.blocks(["id", *_DESCRIBED]):
            has_all = reduce(pc.and_, (pc.is_valid(block[name]) for name in _DESCRIBED))
            yield block.filter(has_all).select(list(names))

    def where(self, row: int) -> str:
        return self.games.where(row)
