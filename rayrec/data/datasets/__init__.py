"""From source files to raw interactions and titles: one reader a format.

Neither torch nor ray: the readers are plain generators of ``pyarrow`` tables, so that Ray Data can run them in a task.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rayrec.config.data import DataConfig
from rayrec.data import synthetic
from rayrec.data.datasets.amazon import open_amazon
from rayrec.data.datasets.amazon_books import open_amazon_books
from rayrec.data.datasets.collm import open_collm
from rayrec.data.datasets.movielens import open_movielens
from rayrec.data.datasets.raw import GivenSplit, RawDataset
from rayrec.data.datasets.session_table import open_sessions
from rayrec.data.datasets.steam import open_steam
from rayrec.data.datasets.tables import open_table

__all__ = ["GivenSplit", "RawDataset", "open_dataset"]


def open_dataset(data: DataConfig, seed: int, paths: Sequence[Path], item_paths: Sequence[Path]) -> RawDataset:
    """The dataset that ``data`` names, from local files.

    Args:
        seed: of ``synthetic``, which needs no paths.
        paths: ``table``, ``sessions``: the interactions; several files are read one after the other. ``amazon-books``,
            ``amazon-beauty``, ``steam``: the ratings or reviews, or a folder with both files. MovieLens and
            ``collm``: the folder.
        item_paths: The items files of those that have any; without, titles come from the interactions or from beside
            them.

    Raises:
        InputError: a file is missing, empty or of an unknown kind. Wrong rows raise it when they are read.
    """
    rating_range = data.rating_range
    match data.dataset:
        case "synthetic":
            make = partial(synthetic.interactions, data.synthetic, seed)
            raw = RawDataset(data.dataset, make, partial(synthetic.items, data.synthetic), {})
        case "table":
            raw = open_table(data, paths, item_paths)
        case "collm":
            raw = open_collm(paths[0], data.split_files)
        case "amazon-books":
            raw = open_amazon_books(paths[0], item_paths, rating_range)
        case "amazon-beauty":
            raw = open_amazon(paths[0], item_paths, rating_range)
        case "steam":
            raw = open_steam(paths[0], item_paths, rating_range)
        case "sessions":
            raw = open_sessions(paths, item_paths, rating_range)
        case _:
            raw = open_movielens(data.dataset, paths[0], rating_range)
    return raw
