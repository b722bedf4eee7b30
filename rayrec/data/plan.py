"""The data order: (seed, epoch) -> the row ids of every global batch. Pure, so that resuming needs no saved state."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# Batches whose rows are sorted by length together. Sorting a whole epoch would pad least, but put only alike rows into
# a batch; 16 batches already bring padding to a few per cent.
POOL = 16


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows every optimizer step sees.

    The rows are drawn from an endless stream of shuffled passes over the data: an epoch of fewer steps than a pass
    takes up where the last one ended, so no row comes twice before every row came once.
    """

    lengths: NDArray[np.int32]  # sequence length of each row: rows of like length share a batch
    batch: int  # rows of a global batch
    steps_per_epoch: int
    seed: int
    shared: NDArray[np.int64] | None = None  # rows of one number have a common prefix and are drawn together
    most_shared: int = 1  # at most so many of them

    def epoch(self, epoch: int) -> Ids:
        """Row ids of one epoch, shape (steps_per_epoch, batch).

        The rows of a batch are in order of length, so that workers' slices of it are alike in length too.
        """
        rows = self._drawn(epoch * self.steps_per_epoch * self.batch, self.steps_per_epoch * self.batch)
        pool = POOL * self.batch
        sorted_pools = [_by_length(rows[i : i + pool], self.lengths, self._held) for i in range(0, len(rows), pool)]
        batches: Ids = np.concatenate(sorted_pools).reshape(self.steps_per_epoch, self.batch)
        shuffled: Ids = batches[np.random.default_rng((self.seed, epoch, 1)).permutation(self.steps_per_epoch)]
        return shuffled

    def step(self, step: int) -> Ids:
        """Row ids of one global batch, counted over the whole stage, shape (batch,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows: Ids = _cached_epoch(self, epoch)[within]
        return rows

    @property
    def _held(self) -> NDArray[np.int64] | None:
        return self.shared if self.most_shared > 1 else None

    def _drawn(self, start: int, count: int) -> Ids:
        pieces: list[Ids] = []
        while count:
            number, offset = divmod(start, len(self.lengths))
            shuffled = _shuffled(len(self.lengths), self._held, self.most_shared, (self.seed, number))
            pieces.append(shuffled[offset : offset + count])
            start, count = start + len(pieces[-1]), count - len(pieces[-1])
        return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _cached_epoch(plan: Plan, epoch: int) -> Ids:
    return plan.epoch(epoch)


def _shuffled(rows: int, shared: NDArray[np.int64] | None, most: int, seed: tuple[int, int]) -> Ids:
    """All rows in random order; of those that share a number, up to ``most`` at a time side by side."""
    random = np.random.default_rng(seed)
    order: Ids = random.permutation(rows)
    if shared is None:
        return order
    order = order[np.argsort(shared[order], kind="stable")]
    numbers = shared[order]
    within = np.arange(rows) - np.searchsorted(numbers, numbers)  # the rank of a row among those of its number
    chunk = np.cumsum(within % most == 0) - 1
    place = random.permutation(int(chunk[-1]) + 1)
    return order[np.argsort(place[chunk], kind="stable")]


def _by_length(rows: Ids, lengths: NDArray[np.int32], shared: NDArray[np.int64] | None = None) -> Ids:
    """Shortest first; neighbours that share a number stay neighbours and count as long as the longest of them."""
    known = lengths[rows]
    if shared is not None:
        starts = np.flatnonzero(np.diff(shared[rows], prepend=-1))
        known = np.repeat(np.maximum.reduceat(known, starts), np.diff(starts, append=len(rows)))
    return rows[np.argsort(known, kind="stable")]


def worker_slice(rows: Ids, rank: int, world: int) -> Ids:
    """Worker ``rank``'s rows of a global batch: neighbours, which may share a prefix."""
    mine: Ids = rows.reshape(world, -1)[rank]
    return mine


def scoring_batches(
    rows: Ids, lengths: NDArray[np.int32], batch: int, shared: NDArray[np.int64] | None = None
) -> list[Ids]:
    """``rows`` in batches of like length, rows that share a number side by side.

    They are the same whatever the number of workers, so scores are the same bits.
    """
    if shared is not None:
        rows = rows[np.argsort(shared[rows], kind="stable")]
    ordered = _by_length(rows, lengths, shared)
    return [ordered[i : i + batch] for i in range(0, len(ordered), batch)]


def row_mark(rows: Ids) -> int:
    """A number that tells which rows make up a batch, whatever their order: marks of its parts add up to its own.

    The hash is Knuth's: The Art of Computer Programming, vol. 3, section 6.4.
    """
    return int((rows.astype(np.uint64) * np.uint64(2654435761) % 2**32).sum())


def sample_rows(user_ids: NDArray[np.int32], users: int | None, rows_per_user: int | None, seed: int) -> Ids:
    """Row ids of a fixed, seeded sample: at most ``users`` users, at most ``rows_per_user`` rows of each; sorted."""
    order = np.random.default_rng((seed, 2)).permutation(len(user_ids))
    if users is not None:
        distinct = np.unique(user_ids)
        drawn = np.random.default_rng((seed, 3)).permutation(distinct)[:users]
        order = order[np.isin(user_ids[order], drawn)]
    if rows_per_user is not None:
        # The rank of each row among its user's rows, in the shuffled order.
        by_user = np.argsort(user_ids[order], kind="stable")
        grouped = user_ids[order][by_user]
        starts = np.searchsorted(grouped, grouped)
        order = order[by_user[np.arange(len(grouped)) - starts < rows_per_user]]
    return np.sort(order)
