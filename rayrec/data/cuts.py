"""Where in time rows are cut, and how the manifest says it."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from rayrec.config.data import SplitConfig
from rayrec.data.columns import TIMESTAMP


def cut_times(blocks: Iterable[pa.Table], rows: int, split: SplitConfig) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The times at which valid, test and what is left out begin, and the manifest's ``split``.

    ``blocks`` hold ``rows`` rows in the order of TIMESTAMP.
    """
    valid, test, end = times_at(blocks, split.cuts(rows))
    times = {"t_valid": valid, "t_test": test}
    fold = {} if split.folds is None else {"folds": split.folds, "fold": split.fold}
    if fold:
        times["t_end"] = end  # else nothing comes behind it
    return (valid, test, end), {**fold, **times, "iso": {name: _iso(time) for name, time in times.items()}}


def times_at(blocks: Iterable[pa.Table], positions: Sequence[int]) -> list[int]:
    """Timestamps at ascending positions of the rows in the order of time; behind the last row, one more than its."""
    times: list[int] = []
    passed, time = 0, 0
    for block in blocks:
        while len(times) < len(positions) and positions[len(times)] < passed + len(block):
            times.append(block[TIMESTAMP][positions[len(times)] - passed].as_py())
        passed, time = passed + len(block), block[TIMESTAMP][-1].as_py()
    return times + [time + 1] * (len(positions) - len(times))


def _iso(time: int) -> str:
    return datetime.fromtimestamp(time, timezone.utc).isoformat()
