"""MovieLens as GroupLens and RecBole lay it out in a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rayrec.config.data import ColumnMap
from rayrec.data.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from rayrec.data.datasets.raw import RawDataset, hashes
from rayrec.data.datasets.tables import read_interactions, read_titles
from rayrec.data.scan import Lines, Source, require_file
from rayrec.errors import InputError


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


def open_movielens(dataset: str, folder: Path, rating_range: tuple[float, float]) -> RawDataset:
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
                source = layout.open_interactions(interactions[0])
                rows = partial(read_interactions, (source,), ColumnMap(), rating_range)
                titles = partial(read_titles, (layout.open_items(items[0]),))
                return RawDataset(dataset, rows, titles, hashes([*interactions, *items]))
    layouts = ", or ".join(f"{layout.interactions} and {layout.items}" for layout in LAYOUTS)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder}: no {dataset} here: expected {layouts}; found {found}; check data.sources")
