"""Tables of sessions as Delivery Hero's: session, item, time, and a table of what the items are called.

https://github.com/dh-r/LLM-Sequential-Recommendation writes SessionId, ItemId, Time and a Reward, which is not read;
its products have a global_product_id and a name.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rayrec.config.data import ColumnMap
from rayrec.data.datasets.raw import RawDataset, hashes
from rayrec.data.datasets.tables import read_interactions, read_titles
from rayrec.data.datasets.values import moments
from rayrec.data.scan import Source, open_source
from rayrec.errors import InputError

# What a column may be called, in any case and with underscores or without.
_SESSION: Final = ("session", "sessionid")
_ITEM: Final = ("item", "itemid", "product", "productid", "globalproductid")
_TIME: Final = ("time", "timestamp")
_NAME: Final = ("name", "itemname", "title")


def open_sessions(paths: Sequence[Path], item_paths: Sequence[Path], rating_range: tuple[float, float]) -> RawDataset:
    """The rows of ``paths``, one file after the other, and the names in ``item_paths``.

    Times are seconds since 1970 or dates; rows of equal time keep the order of the file.

    Raises:
        InputError: a file is missing, of another kind or without one of the columns.
    """
    sources = tuple(open_source(path) for path in paths)
    user, item, time = (_column(sources[0], spelled) for spelled in (_SESSION, _ITEM, _TIME))
    columns = ColumnMap(user=user, item=item, rating=None, timestamp=time)
    if not item_paths:
        raise InputError(f"{paths[0]}: tells no names of items; set data.item_sources to the table that does")
    items = tuple(open_source(path) for path in item_paths)
    titles = partial(read_titles, items, _column(items[0], _ITEM), _column(items[0], _NAME))
    read = partial(read_interactions, sources, columns, rating_range, moments)
    return RawDataset("sessions", read, titles, hashes([*paths, *item_paths]))


def _column(source: Source, spelled: Sequence[str]) -> str:
    found = source.columns()
    for name in found:
        if name.lower().replace("_", "") in spelled:
            return name
    raise InputError(
        f"{source.path}: no column called {' or '.join(spelled)}; rename one, or read it as data.dataset: table with"
        f" data.columns; found: {', '.join(found)}"
    )
