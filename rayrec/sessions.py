"""Sessions as two flat arrays: what data, models and metrics of the next-item track pass to each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sessions:
    """One session's items after another's: session s is ``items[offsets[s] : offsets[s + 1]]``.

    Raises:
        ValueError: the offsets do not cut ``items`` into sessions, or an id is below 1.
    """

    items: IntArray  # ids from 1, oldest first within a session; shape (events,)
    offsets: IntArray  # shape (sessions + 1,); an empty session is two equal neighbours

    def __post_init__(self) -> None:
        if self.items.dtype.kind not in "iu" or self.offsets.dtype.kind not in "iu":
            raise ValueError(f"items are {self.items.dtype}, offsets {self.offsets.dtype}; both must be integers")
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise ValueError(f"offsets must go from 0 to {len(self.items)}, the number of events")
        if (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must not fall")
        if len(self.items) and self.items.min() < 1:
            raise ValueError(f"item {self.items.min()}: ids start at 1")

    @classmethod
    def of(cls, sessions: Iterable[Sequence[int]]) -> "Sessions":
        """From one sequence of ids a session."""
        lists = list(sessions)
        lengths = np.array([len(session) for session in lists], dtype=np.int64)
        items = np.array([item for session in lists for item in session], dtype=np.int64)
        return cls(items, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Index:
        """Events of each session; shape (sessions,)."""
        return np.diff(self.offsets).astype(np.int64)

    @property
    def owners(self) -> Index:
        """The session of each event, from 0; shape (events,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def each(self) -> list[IntArray]:
        """The items of every session; not copied."""
        return np.split(self.items, self.offsets[1:])[:-1]

    def between(self, start: int, stop: int) -> "Sessions":
        """Sessions start .. stop - 1; their events are not copied."""
        low, high = self.offsets[start], self.offsets[stop]
        return Sessions(self.items[low:high], self.offsets[start : stop + 1] - low)

    def newest(self, count: int) -> "Sessions":
        """The last ``count`` items of each session, or all that it has."""
        from_end = np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.items))
        ends = np.cumsum(np.minimum(self.lengths, count))
        return Sessions(self.items[from_end <= count], np.append(0, ends))

    def require(self, items: int) -> None:
        """Refuses ids outside a catalogue.

        Raises:
            ValueError: an id is above ``items``.
        """
        if len(self.items) and self.items.max() > items:
            raise ValueError(f"item {self.items.max()} is not in a catalogue of {items} items")

    def counts(self, items: int) -> Index:
        """How many events each of a catalogue's items has, by id; shape (items + 1,), 0 at 0.

        Raises:
            ValueError: an id is above ``items``.
        """
        self.require(items)
        return np.bincount(self.items, minlength=items + 1)
