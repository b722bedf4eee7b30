"""The Ray Data graphs: prepared rows + plan -> one worker's batches, fetched ahead while the model computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from rayrec.data.blocks import calm_ray_data
from rayrec.data.plan import Plan, worker_slice
from rayrec.data.rows import RowSource

_STEP = "step"
_ROWS_PER_CALL = 1024  # rows fetched at a time
_MOST_TASKS = 256  # a long stage is cut into longer tasks, not into more: each streams its rows out as they come


@dataclass(frozen=True)
class WorkerOrder:
    """The slice of a stage's data order that one worker trains on. Plain data: tasks rebuild the plan from it."""

    source: RowSource
    batch: int
    steps_per_epoch: int
    seed: int
    rank: int
    world: int
    most_shared: int = 1  # rows of one history that are drawn together

    def plan(self) -> Plan:
        return _plan(self)


_PLANS: dict[WorkerOrder, Plan] = {}


def _plan(order: WorkerOrder) -> Plan:
    if order not in _PLANS:
        rows = order.source.open()
        shared = rows.shared if order.most_shared > 1 else None
        _PLANS[order] = Plan(rows.lengths, order.batch, order.steps_per_epoch, order.seed, shared, order.most_shared)
    return _PLANS[order]


def training_batches(order: WorkerOrder, first_step: int, last_step: int) -> Iterator[pa.Table]:
    """This worker's rows of the optimizer steps ``first_step`` to ``last_step - 1``, one table a step, in order."""
    rows = order.batch // order.world
    call = max(1, _ROWS_PER_CALL // rows)
    steps = [{_STEP: step} for step in range(first_step, last_step)]
    tasks = min(_MOST_TASKS, -(-len(steps) // call))
    with calm_ray_data():
        # No CPU of its own, one task at a time: workers may hold every CPU of the cluster, and fetching must not wait.
        # from_items makes its blocks here; from_arrow would start tasks that do wait for a CPU.
        fetched = ray.data.from_items(steps, override_num_blocks=tasks).map_batches(
            _fetch,  # type: ignore[arg-type]  # its types know no further arguments
            fn_args=(order,),
            batch_size=call,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=1),
        )
        yield from fetched.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=2)


def _fetch(steps: dict[str, np.ndarray[Any, Any]], order: WorkerOrder) -> pa.Table:
    plan = order.plan()
    ids = [worker_slice(plan.step(int(step)), order.rank, order.world) for step in steps[_STEP]]
    return order.source.open().fetch(np.concatenate(ids))
