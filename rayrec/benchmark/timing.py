"""Interleaved runs of two ways to do the same work, so that a machine whose speed drifts slows both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[int], int]  # the number of a round -> how many things it did


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against a reference; rates are things a second, one a round."""

    name: str
    reference: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Round by round, since two runs side by side share the machine's mood."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(*, name: str, reference: str, unit: str, ours: Work, theirs: Work, rounds: int) -> Comparison:
    """Run both ``rounds`` times in turn, after one round of each that does not count."""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for work, found in zip((ours, theirs), rates, strict=True):
            began = time.perf_counter()
            done = work(number)
            if number >= 0:
                found.append(done / (time.perf_counter() - began))
    return Comparison(name=name, reference=reference, unit=unit, ours=tuple(rates[0]), theirs=tuple(rates[1]))
