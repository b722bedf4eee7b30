"""What a function yields in a process of its own, and how that ends."""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from rayrec.benchmark.isolated import from_own_process
from rayrec.errors import InputError


def gives(count: int, *, refused: bool = False) -> Iterator[tuple[int, int]]:
    for number in range(count):
        yield number, os.getpid()
    if refused:
        raise InputError("rectools: no such environment")


def hangs() -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)


def is_killed() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def breaks() -> Iterator[int]:
    yield 1
    raise ArithmeticError("NDCG is 1 here, 2 there")


def test_each_call_has_a_process_of_its_own() -> None:
    first, second = (list(from_own_process(gives, 3)) for _ in range(2))
    assert [number for number, _ in first] == [0, 1, 2]
    assert len({pid for _, pid in [*first, *second]} | {os.getpid()}) == 3
    assert not any(psutil.pid_exists(pid) for _, pid in [*first, *second])


def test_bad_input_is_raised_here() -> None:
    given = from_own_process(gives, 1, refused=True)
    assert next(given)[0] == 0
    with pytest.raises(InputError, match="no such environment"):
        next(given)


@pytest.mark.parametrize(("give", "code"), [(is_killed, -9), (breaks, 1)])
def test_a_process_that_was_lost_is_told(give: object, code: int) -> None:
    given = from_own_process(give)  # type: ignore[arg-type]
    assert next(given) == 1
    with pytest.raises(ChildProcessError, match=f"{give.__name__}: its process ended with exit code {code}$"):  # type: ignore[attr-defined]
        next(given)


def test_none_outlives_who_asked() -> None:
    given = from_own_process(hangs)
    pid = next(given)
    assert psutil.pid_exists(pid)
    began = time.monotonic()
    given.close()  # as an interruption does  # type: ignore[attr-defined]
    assert not psutil.pid_exists(pid) and time.monotonic() - began < 8
