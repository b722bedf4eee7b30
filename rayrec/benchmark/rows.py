"""The rows that both sides of a comparison train on."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrec.data.streams import WorkerOrder
from rayrec.training.job import StageJob

_EPOCH = 4  # rounds


@dataclass(frozen=True)
class Rounds:
    """A stage's own data order, cut into rounds of ``steps`` batches."""

    job: StageJob
    steps: int

    def batches(self, number: int) -> list[pa.Table]:
        """The batches of a round as the stage draws them: like lengths, equal histories together."""
        rows = self.job.rows("train").open()
        first = (number + 1) * self.steps
        return [rows.fetch(self._order().plan().step(step)) for step in range(first, first + self.steps)]

    def _order(self) -> WorkerOrder:
        job = self.job
        return WorkerOrder(
            source=job.rows("train"),
            batch=job.settings.batch,
            steps_per_epoch=_EPOCH * self.steps,
            seed=0,
            rank=0,
            world=1,
            most_shared=job.most_shared,
        )

    def shuffled(self, number: int) -> list[pa.Table]:
        """The same rows in batches as a shuffling loader draws them."""
        table = pa.concat_tables(self.batches(number))
        order = np.random.default_rng(number + 1).permutation(table.num_rows)
        size = self.job.settings.batch
        return [table.take(order[start : start + size]) for start in range(0, table.num_rows, size)]
