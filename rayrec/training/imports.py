"""Importing large libraries in a worker: seconds of every stage and of every scoring actor."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector of cycles, which looks through a library's objects again and again as they come."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def without(module: str) -> Iterator[None]:
    """As if ``module`` were not installed, for a library that would import it for what is never asked of it.

    A module that is there already stays.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[module]
