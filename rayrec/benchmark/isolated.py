"""A subject in a process of its own, so that none is quicker or slower for what ran before it.

glibc keeps more of the memory that is freed once larger blocks were: after the LLM stages, whole prompts went through a
backbone in a sixth less time than in a fresh process, where the states' pages are fresh in every layer.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from rayrec.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
_PATIENCE: Final = 10.0  # seconds for a process that is interrupted to end its own


class _Ended(NamedTuple):
    """The last thing that a process says."""

    error: InputError | None


def from_own_process(give: Callable[P, Iterator[T]], *given: P.args, **options: P.kwargs) -> Iterator[T]:
    """What ``give`` yields in a new process, one by one; the process does not outlive the iteration.

    Raises:
        InputError: ``give`` raised it.
        ChildProcessError: the process was killed, or an error ended it, which it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([give.__module__])  # what takes seconds to import is imported once
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(told, give, given, options))
    process.start()
    told.close()
    try:
        while not isinstance(said := heard.recv(), _Ended):
            yield said
        process.join()
        if said.error is not None:
            raise said.error
    except EOFError:
        process.join()
        raise ChildProcessError(f"{give.__name__}: its process ended with exit code {process.exitcode}") from None
    finally:
        _end(process)


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(_PATIENCE)
        process.kill()
    process.join()


def _tell(told: "Connection[Any, Any]", give: Callable[..., Iterator[Any]], given: Any, options: Any) -> None:
    """In the new process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it takes its files and processes along
    try:
        for found in give(*given, **options):
            told.send(found)
        told.send(_Ended(None))
    except InputError as error:
        told.send(_Ended(error))
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)  # who started this process was interrupted as well, and says so
