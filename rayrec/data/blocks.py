"""Ray Data as the preparation uses it: a generator as a dataset, a function over its blocks, and quiet."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rayrec.errors import InputError

BLOCK_BYTES: Final = 16 << 20  # small enough to stream, large enough to be worth a task
_T = TypeVar("_T")


class _Generated(Datasource):
    """Blocks of a generator, read by one task on the driver's node, where the files are."""

    def __init__(self, generate: Callable[[], Iterator[pa.Table]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generate = generate

    @property
    def supports_distributed_reads(self) -> bool:
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [ReadTask(self._generate, BlockMetadata(None, None, None, None))]


def read(generate: Callable[[], Iterator[pa.Table]], *, cpus: int | None = None) -> ray.data.Dataset:
    """Lazily: each pass generates the blocks again, which is cheaper than keeping every row as text.

    ``cpus`` are Ray's, None: one; with 0 it needs no place beside actors that have them all.
    """
    dataset: ray.data.Dataset = ray.data.read_datasource(_Generated(generate), override_num_blocks=1, num_cpus=cpus)
    return dataset


def map_blocks(dataset: ray.data.Dataset, function: Callable[[pa.Table, _T], pa.Table], shared: _T) -> ray.data.Dataset:
    """``function`` of every block; ``shared`` goes through the object store, once a node."""
    call = partial(_call, function=function, shared=ray.put(shared))
    mapped: ray.data.Dataset = dataset.map_batches(call, batch_size=None, batch_format="pyarrow")
    return mapped


def _call(block: pa.Table, function: Callable[[pa.Table, Any], pa.Table], shared: "ray.ObjectRef[Any]") -> pa.Table:
    return function(block, ray.get(shared))


def tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """The blocks that hold rows, in order, one at a time on the driver."""
    return (block for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow") if len(block))


class _Calm:
    """Ray Data's settings are the process's: the first of several threads makes them, the last takes them back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._restore: Callable[[], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._restore = _calm()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._restore is not None:
                self._restore()


_CALM: Final = _Calm()


@contextlib.contextmanager
def calm_ray_data() -> Iterator[None]:
    """Small blocks in order, no progress bars, no logs: what fails is raised, and would be printed twice.

    Raises:
        InputError: as a task or an actor raised it; Ray itself would wrap it in its own errors.
    """
    try:
        with _CALM:
            yield
    except Exception as error:
        if (cause := _input_error(error)) is not None:
            raise cause from None
        raise


def _calm() -> Callable[[], None]:
    """Make the settings; what is returned takes them back."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    settings = {
        "target_max_block_size": BLOCK_BYTES,
        "shuffle_input_batch_bytes": 4 * BLOCK_BYTES,  # a shuffle's task otherwise takes a gigabyte at once
        "enable_progress_bars": False,
        "raise_original_map_exception": True,  # else it comes as the cause of another error, which pickling forgets
    }
    before, level = {name: getattr(context, name) for name in settings}, logger.level
    ordered, context.execution_options.preserve_order = context.execution_options.preserve_order, True
    logger.setLevel(logging.CRITICAL)
    for name, value in settings.items():
        setattr(context, name, value)

    def restore() -> None:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = ordered
        logger.setLevel(level)

    return restore


def _input_error(error: BaseException | None) -> InputError | None:
    """The InputError inside whatever Ray wrapped around it."""
    while error is not None:
        if type(error) is InputError:  # Ray also raises a subclass of it whose text is a traceback
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
