"""A pass of Ray Data actors over calls that are cut beforehand: which actor runs one changes no bit of its answer."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rayrec.config.training import ClusterConfig
from rayrec.data.blocks import calm_ray_data, read
from rayrec.training.launch import worker_resources


def answers(
    calls: Sequence[dict[str, Any]], actor: type, arguments: tuple[Any, ...], cluster: ClusterConfig
) -> Iterator[pa.Table]:
    """What actors, ``actor(*arguments)``, make of the calls, in their order; there are as many as workers.

    Each is called with a table of one row, its columns the keys of a call, and returns a table.

    Raises:
        InputError: as an actor raised it.
    """
    with calm_ray_data():
        given = ray.data.from_items(list(calls), override_num_blocks=len(calls))
        made = _mapped(given, actor, arguments, cluster, len(calls), batch_size=None)  # one call is one block
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow")


def streamed(
    generate: Callable[[], Iterator[pa.Table]],
    count: int,
    actor: type,
    arguments: tuple[Any, ...],
    cluster: ClusterConfig,
) -> Iterator[pa.Table]:
    """The same of the ``count`` tables that ``generate`` gives, on this node and only as fast as they are asked for.

    Each is a call as it comes, since it travels as one row: no block that Ray Data makes of several cuts one.

    Raises:
        InputError: as ``generate`` or an actor raised it.
    """
    with calm_ray_data():
        given = read(lambda: map(_packed, generate()), cpus=0)
        given.context.target_max_block_size = 1  # every row a block of its own
        made = _mapped(given, _OfTables, (actor, arguments), cluster, count, batch_size=1)
        yield from map(_unpacked, made.iter_batches(batch_size=None, batch_format="pyarrow"))


def _mapped(
    given: ray.data.Dataset,
    actor: type,
    arguments: tuple[Any, ...],
    cluster: ClusterConfig,
    calls: int,
    *,
    batch_size: int | None,
) -> ray.data.Dataset:
    resources = worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker)
    made: ray.data.Dataset = given.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=min(cluster.least, calls), max_size=min(cluster.most, calls)),
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
    )
    return made


class _OfTables:
    """An actor whose calls are tables that came packed."""

    def __init__(self, actor: type, arguments: tuple[Any, ...]) -> None:
        self._actor = actor(*arguments)

    def __call__(self, row: pa.Table) -> pa.Table:
        return _packed(self._actor(_unpacked(row)))


def _packed(table: pa.Table) -> pa.Table:
    """A table as one row of lists."""
    ends = pa.array(np.array([0, len(table)], np.int32))
    lists = [pa.ListArray.from_arrays(ends, column.combine_chunks()) for column in table.columns]
    return pa.table(lists, names=table.column_names)


def _unpacked(rows: pa.Table) -> pa.Table:
    """The tables of some rows, one after the other."""
    return pa.table([pc.list_flatten(column) for column in rows.columns], names=rows.column_names)
