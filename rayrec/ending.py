"""How the process of a job ends, whatever a library does at an interpreter's end."""

import atexit
import os
import sys
from threading import Event
from typing import NoReturn

_had_ray = Event()


def expect_ray() -> None:
    """From here on this process is one that has had a Ray."""
    _had_ray.set()


def end(status: int) -> NoReturn:
    """Exit with ``status``.

    Ray's core was seen to abort while an interpreter with all its work done was taken apart: a search that had written
    its report ended with SIGABRT, to ``ray job submit`` a failure. So what had a Ray ends before that.
    """
    if not _had_ray.is_set():
        sys.exit(status)
    atexit._run_exitfuncs()
    end_at_once(status)


def end_at_once(status: int) -> NoReturn:
    """Exit with ``status``, past everything but what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
