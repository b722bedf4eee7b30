"""A pass of Ray Data actors over calls that are cut beforehand: which actor runs one changes no bit of its answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from rayrec.config.training import ClusterConfig
from rayrec.data.blocks import calm_ray_data
from rayrec.training.launch import worker_resources


def answers(
    calls: Sequence[dict[str, Any]], actor: type, arguments: tuple[Any, ...], cluster: ClusterConfig
) -> Iterator[pa.Table]:
    """What actors, ``actor(*arguments)``, make of the calls, in their order; there are as many as workers.

    Each is called with a table of one row, its columns the keys of a call, and returns a table.

    Raises:
        InputError: as an actor raised it.
    """
    resources = worker_resources(cluster.cpus_per_worker, cluster.gpus_per_worker)
    with calm_ray_data():
        made = ray.data.from_items(list(calls), override_num_blocks=len(calls)).map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=None,  # one call is one block
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=min(cluster.least, len(calls)), max_size=min(cluster.most, len(calls))
            ),
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
        )
        yield from made.iter_batches(batch_size=None, batch_format="pyarrow")
