"""How the process of a job ends, whatever a library does at an interpreter's end."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def process() -> Iterator[None]:
    """The block is all that this process does; where it exits and had a Ray, the process ends with it.

    Ray's core was seen to abort while an interpreter with all its work done was taken apart: a search that had written
    its report ended with SIGABRT, to ``ray job submit`` a failure.
    """
    try:
        yield
    except SystemExit as exit_:
        if "ray" in sys.modules and isinstance(exit_.code, int):
            atexit._run_exitfuncs()
            at_once(exit_.code)
        raise


def at_once(status: int) -> NoReturn:
    """Exit with ``status``, past everything but what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
