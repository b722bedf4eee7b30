"""Axes of a search's figures: what part of the values to show, and where a parameter's values lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from rayrec.report.tables import DASH, number

_FAR_OUT: Final = 1.5  # Tukey's fence: so many interquartile ranges from the middle half
_MOST_TICKS: Final = 9  # on an axis of the parallel coordinates

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mode = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A vertical axis of the parallel coordinates: where each trial lies on it, from 0 to 1, and its labels."""

    places: Floats
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False


def span(values: Floats, mode: Mode) -> tuple[float, float]:
    """The part of an axis worth showing: all values, but for those that are worse than the rest by far."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, first, third, high = (float(value) for value in np.quantile(finite, (0, 0.25, 0.75, 1)))
    room = _FAR_OUT * (third - first)
    if len(finite) < 5 or not room:
        return low, high
    return (max(low, first - room), high) if mode == "max" else (low, min(high, third + room))


def is_cut(values: Floats, mode: Mode) -> bool:
    """Whether ``span`` leaves out any."""
    low, high = span(values, mode)
    return bool(((values < low) | (values > high)).any())


def scale(values: Sequence[Any], words: str) -> Scale:
    """Places a parameter's values: logarithmically where ``words`` begin with "log", choices evenly spaced."""
    numbers = np.array([number(value) for value in values], dtype=np.float64)
    given = [value for value in values if not _is_missing(value)]
    finite = numbers[np.isfinite(numbers)]
    if words.startswith("one of") or len(finite) < len(given):
        return _choices(values)
    if not len(finite):
        return Scale(places=numbers, ticks=())
    is_log = words.startswith("log") and bool((finite > 0).all())
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Scale(places=np.where(np.isfinite(numbers), 0.5, np.nan), ticks=((0.5, _amount(low)),), is_log=is_log)
    bend = np.log10 if is_log else np.asarray
    start, end = float(bend(low)), float(bend(high))
    ticks = _log_ticks(low, high) if is_log else _linear_ticks(low, high, whole=_all_whole(given))
    placed = tuple(((float(bend(tick)) - start) / (end - start), _amount(tick)) for tick in ticks)
    return Scale(places=(bend(numbers) - start) / (end - start), ticks=placed, is_log=is_log)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Path -> its last parts, as few as tell it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[path] = next(
            (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in paths) == 1), path
        )
    return found


def _choices(values: Sequence[Any]) -> Scale:
    def key(value: Any) -> tuple[bool, float, str]:
        size = number(value)
        return np.isnan(size), 0.0 if np.isnan(size) else size, _level(value)

    levels = list(dict.fromkeys(_level(value) for value in sorted(values, key=key)))
    place = {level: index / (len(levels) - 1) if len(levels) > 1 else 0.5 for index, level in enumerate(levels)}
    every = -(-len(levels) // (2 * _MOST_TICKS))
    return Scale(
        places=np.array([place[_level(value)] for value in values], dtype=np.float64),
        ticks=tuple((place[level], level) for level in levels[::every]),
    )


def _level(value: Any) -> str:
    if _is_missing(value):
        return DASH  # a choice of nothing, say of no limit
    return f"{number(value):.10g}" if np.isfinite(number(value)) else " ".join(str(value).split())


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and bool(np.isnan(value)))


def _all_whole(values: Sequence[Any]) -> bool:
    return all(number(value).is_integer() for value in values)


def _linear_ticks(low: float, high: float, *, whole: bool) -> list[float]:
    ticks = MaxNLocator(6, integer=whole).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = LogLocator(subs=steps, numticks=50).tick_values(low, high)
        inside = [float(tick) for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // _MOST_TICKS)]
    return [low, high]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and value.is_integer() else f"{value:.4g}"
