"""The Ray Data graphs: prepared rows + plan -> one worker's batches, fetched ahead while the model computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from rayrec.data.plan import Plan, worker_slice
from rayrec.data.rows import RowSource

_ROWS_PER_BLOCK = 1024  # rows fetched by one Ray Data task


@dataclass(frozen=True)
class WorkerOrder:
    """The slice of a stage's data order that one worker trains on. Plain data: tasks rebuild the plan from it."""

    source: RowSource
    batch: int
    steps_per_epoch: int
    seed: int
    rank: int
    world: int

    def plan(self) -> Plan:
        return _plan(self)


_PLANS: dict[WorkerOrder, Plan] = {}


def _plan(order: WorkerOrder) -> Plan:
    if order not in _PLANS:
        lengths = order.source.open().lengths
        _PLANS[order] = Plan(lengths, order.batch, order.steps_per_epoch, order.seed)
    return _PLANS[order]


def training_batches(order: WorkerOrder, first_step: int, last_step: int) -> Iterator[pa.Table]:
    """This worker's rows of the optimizer steps ``first_step`` to ``last_step - 1``, one table a step, in order."""
    rows = order.batch // order.world
    steps = max(1, _ROWS_PER_BLOCK // rows)
    blocks = -(-(last_step - first_step) // steps)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    numbers = ray.data.range(last_step - first_step, override_num_blocks=blocks)
    # A fraction of a CPU: fetching must fit in beside workers that hold all the others.
    fetched = numbers.map_batches(_fetch, fn_args=(order, first_step), batch_size=steps, num_cpus=0.25)
    yield from fetched.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=2)


def _fetch(steps: dict[str, np.ndarray[Any, Any]], order: WorkerOrder, first_step: int) -> pa.Table:
    plan = order.plan()
    ids = [worker_slice(plan.step(first_step + int(step)), order.rank, order.world) for step in steps["id"]]
    return order.source.open().fetch(np.concatenate(ids))
