"""The one live line of a stage: stage, step, loss, rows/s, time left."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_POLL_SECONDS = 1.0
_PLAIN_LINES = 4  # lines a stage prints where there is no terminal to redraw


@dataclass(frozen=True)
class Pulse:
    """What a worker tells after a step."""

    step: int
    loss: float
    rows_per_s: float
    best: float | None  # validation AUC


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest pulse: rank 0 writes without waiting, the driver reads."""

    def __init__(self) -> None:
        self._pulse: Pulse | None = None

    def show(self, pulse: Pulse) -> None:
        self._pulse = pulse

    def latest(self) -> Pulse | None:
        return self._pulse


@contextmanager
def live_line(title: str, total: int) -> Iterator[Any]:
    """A board whose pulses are shown while the block runs: redrawn on a terminal, a few plain lines elsewhere."""
    board = Board.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    show = _redraw if sys.stdout.isatty() else _print_some
    thread = threading.Thread(target=show, args=(board, stop, title, total), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)


def _redraw(board: Any, stop: threading.Event, title: str, total: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console()) as bar:
        task = bar.add_task(title, total=total, text="starting")
        while True:
            last = stop.wait(_POLL_SECONDS)
            pulse = _read(board)
            if pulse is not None:
                bar.update(task, completed=pulse.step, text=_text(pulse, total))
            if last:
                return


def _print_some(board: Any, stop: threading.Event, title: str, total: int) -> None:
    first: tuple[float, int] | None = None
    shown = 0
    while not stop.wait(_POLL_SECONDS):
        pulse = _read(board)
        if pulse is None:
            continue
        first = first or (time.monotonic(), pulse.step)
        share = pulse.step * _PLAIN_LINES // total
        if share > shown and pulse.step < total:
            shown = share
            rate = (time.monotonic() - first[0]) / max(1, pulse.step - first[1])
            print(f"{title}  {_text(pulse, total)}  {_clock(rate * (total - pulse.step))} left", flush=True)


def _read(board: Any) -> Pulse | None:
    try:
        pulse: Pulse | None = ray.get(board.latest.remote(), timeout=5)
    except ray.exceptions.RayError:  # the cluster is going down; the stage's own error tells why
        return None
    return pulse


def _text(pulse: Pulse, total: int) -> str:
    best = "" if pulse.best is None else f"  valid AUC {pulse.best:.4f}"
    return f"step {pulse.step}/{total}  loss {pulse.loss:.4f}{best}  {pulse.rows_per_s:,.1f} rows/s"


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S" if seconds >= 3600 else "%M:%S", time.gmtime(max(0, seconds)))
