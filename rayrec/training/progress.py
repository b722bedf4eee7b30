"""The live line of the stage at work: stage, step, loss, rows/s, time left; and a plain line when it ends."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_POLL_SECONDS = 1.0
_PLAIN_LINES = 4  # lines a stage prints where there is no terminal to redraw


@dataclass(frozen=True)
class Pulse:
    """What a worker tells after a step."""

    stage: str
    step: int
    total: int
    loss: float
    rows_per_s: float
    judged_by: str  # a validation metric's name
    best: float | None  # its best value


@dataclass(frozen=True)
class News:
    """What the board holds: the latest pulse, and a closing line for every stage that has ended."""

    pulse: Pulse | None = None
    ended: Mapping[str, str] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class Board:
    """Rank 0 writes without waiting, the driver reads."""

    def __init__(self) -> None:
        self._pulse: Pulse | None = None
        self._ended: dict[str, str] = {}

    def show(self, pulse: Pulse) -> None:
        self._pulse = pulse

    def end(self, stage: str, line: str) -> None:
        """Tell of a stage's end; a second time, after a restart of the workers, changes nothing."""
        self._ended.setdefault(stage, line)

    def passed(self, folder: str, evaluation: int, last: bool) -> None:
        """A ``Gate`` would wait here."""

    def read(self) -> News:
        return News(self._pulse, dict(self._ended))


@ray.remote(num_cpus=0)
class Gate:
    """A board that holds trainings after each evaluation until their next one is allowed; one for a whole search."""

    def __init__(self) -> None:
        self._allowed: dict[str, float] = {}
        self._reached: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def show(self, pulse: Pulse) -> None:
        """Nobody looks."""

    async def end(self, stage: str, line: str) -> None:
        """Nobody looks."""

    async def passed(self, folder: str, evaluation: int, last: bool) -> None:
        """Called behind an evaluation that is on record; returns when the training in ``folder`` may go on."""
        async with self._changed:
            self._reached[folder] = max(self._reached.get(folder, 0), evaluation)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: last or self._allowed.get(folder, 0) > evaluation)

    async def allow(self, folder: str, evaluation: float) -> None:
        """Let the training in ``folder`` go on up to the evaluation of this number."""
        async with self._changed:
            self._allowed[folder] = max(self._allowed.get(folder, 0), evaluation)
            self._changed.notify_all()

    async def until(self, folder: str, evaluation: int) -> None:
        """Returns when the evaluation of this number is on record."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._reached.get(folder, 0) >= evaluation)


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """For an actor that all workers call: it must not go with a node that only they were on."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def live_lines(label: str = "") -> Iterator[Any]:
    """A board whose news are shown while the block runs: redrawn on a terminal, a few plain lines elsewhere.

    ``label`` begins the lines of one of several boards, which no terminal could redraw at once.
    """
    board = Board.options(scheduling_strategy=beside_the_driver()).remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    screen = _Redrawn() if sys.stdout.isatty() and not label else _Plain(label)
    thread = threading.Thread(target=_follow, args=(board, stop, screen, label), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)


def _follow(board: Any, stop: threading.Event, screen: "_Redrawn | _Plain", label: str) -> None:
    told: set[str] = set()
    last = False
    while not last:
        last = stop.wait(_POLL_SECONDS)
        news = _read(board)
        if news.pulse is not None and news.pulse.stage not in news.ended:
            screen.show(news.pulse)
        for stage in news.ended.keys() - told:
            screen.clear()
            print(f"{label}{news.ended[stage]}", flush=True)
            told.add(stage)
    screen.clear()


class _Redrawn:
    """One line of a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage = ""

    def show(self, pulse: Pulse) -> None:
        if self._bar is None or self._stage != pulse.stage:
            self.clear()
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar, self._stage = (
                Progress(*columns, TimeRemainingColumn(), console=Console(), transient=True),
                pulse.stage,
            )
            self._bar.add_task(pulse.stage, total=pulse.total, text="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=pulse.step, text=_text(pulse))

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Plain:
    """A few lines a stage, for logs."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._first: Pulse | None = None
        self._began = 0.0
        self._shown = 0

    def show(self, pulse: Pulse) -> None:
        if self._first is None or self._first.stage != pulse.stage:
            self._first, self._began, self._shown = pulse, time.monotonic(), 0
        share = pulse.step * _PLAIN_LINES // pulse.total
        if share > self._shown and pulse.step < pulse.total:
            self._shown = share
            rate = (time.monotonic() - self._began) / max(1, pulse.step - self._first.step)
            left = time.gmtime(rate * (pulse.total - pulse.step))
            clock = time.strftime("%H:%M:%S" if left.tm_hour else "%M:%S", left)
            print(f"{self._label}{pulse.stage}  {_text(pulse)}  {clock} left", flush=True)

    def clear(self) -> None:
        """Plain lines stay."""


def _read(board: Any) -> News:
    try:
        news: News = ray.get(board.read.remote(), timeout=5)
    except ray.exceptions.RayError:  # the cluster is going down; the stage's own error tells why
        return News()
    return news


def _text(pulse: Pulse) -> str:
    best = "" if pulse.best is None else f"  valid {pulse.judged_by} {pulse.best:.4f}"
    return f"step {pulse.step}/{pulse.total}  loss {pulse.loss:.4f}{best}  {pulse.rows_per_s:,.1f} rows/s"
