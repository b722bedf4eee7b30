"""What every reader returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayrec.cache import file_sha256
from rayrec.data.columns import SPLITS
from rayrec.errors import InputError


@dataclass(frozen=True)
class GivenSplit:
    """The split of a dataset that comes split: a file each for training, valid and test, read in this order."""

    files: tuple[Path, ...]
    starts: tuple[int, int]  # ROW at which valid and test begin

    def where(self, row: int) -> str:
        """ROW ``row`` as a person finds it: the file, and its row counted from 1."""
        starts = (0, *self.starts)
        at = max(i for i, start in enumerate(starts) if start <= row)
        return f"{self.files[at]}, row {row - starts[at] + 1}"

    def names(self) -> dict[str, str]:
        """Split -> file name."""
        return {split: path.name for split, path in zip(SPLITS, self.files, strict=True)}


@dataclass(frozen=True)
class RawDataset:
    """What ``prepare`` reads. Both callables can be pickled and called again; every call starts from the first row."""

    name: str
    interactions: Callable[[], Iterator[pa.Table]]  # blocks of RAW_SCHEMA; null where a value is missing
    items: Callable[[], Iterator[pa.Table]]  # blocks of RAW_ITEM_SCHEMA; an item may occur more than once
    sha256: Mapping[str, str]  # file name -> hash (hex) of every source file
    split: GivenSplit | None = None  # of a dataset that comes split; its interactions are blocks of GIVEN_SCHEMA
    is_timed: bool = True  # else TIMESTAMP is a place in the order of the user's rows, and tells nothing between users


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """sha256 (hex) by name; files of the same name are told apart by their folders."""
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": file_sha256(path)
        for path in paths
    }


def find_file(folder: Path, patterns: Sequence[str]) -> Path:
    """The file in ``folder`` that is named like the first of the ``patterns`` that any is named like.

    Raises:
        InputError: there is none, or several are named like that one.
    """
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                raise InputError(
                    f"{folder}: {len(found)} files {pattern}; name one in data.sources or data.item_sources"
                )
            return found[0]
    there = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "nothing"
    raise InputError(f"{folder}: no {' or '.join(patterns)}; found {there}; check data.sources and data.item_sources")
