"""Interleaved runs of two ways to do the same work, so that a machine whose speed drifts slows both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode


class Timed(NamedTuple):
    """Things done, and the seconds that count of a round that does other things too."""

    done: int
    seconds: float


Work = Callable[[int], "int | Timed"]  # the number of a round -> how many things it did


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against a reference; rates are things a second, one a round."""

    name: str
    reference: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    our_flop: float = 0.0  # in matrix products, for one thing; 0: not counted
    their_flop: float = 0.0

    @property
    def ratios(self) -> tuple[float, ...]:
        """Round by round, since two runs side by side share the machine's mood."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(
    *, name: str, reference: str, unit: str, ours: Work, theirs: Work, rounds: int, flop: bool = False
) -> Comparison:
    """Run both ``rounds`` times in turn, after one round of each that does not count; ``flop`` counts in one more."""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for work, found in zip((ours, theirs), rates, strict=True):
            began = time.perf_counter()
            did = work(number)
            done, seconds = did if isinstance(did, Timed) else (did, time.perf_counter() - began)
            if number >= 0:
                found.append(done / seconds)
    counted = [_flop(work, rounds) if flop else 0.0 for work in (ours, theirs)]
    return Comparison(
        name=name,
        reference=reference,
        unit=unit,
        ours=tuple(rates[0]),
        theirs=tuple(rates[1]),
        our_flop=counted[0],
        their_flop=counted[1],
    )


def _flop(work: Work, number: int) -> float:
    """Floating point operations of the matrix products that are really done for one thing."""
    with FlopCounterMode(display=False) as counter:
        did = work(number)
    return float(counter.get_total_flops()) / (did.done if isinstance(did, Timed) else did)
