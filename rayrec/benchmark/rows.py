"""The rows that both sides of a comparison train on."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrec.data.plan import Plan
from rayrec.data.rows import OpenRows
from rayrec.training.job import StageJob


@dataclass(frozen=True)
class Rounds:
    """A stage's own data order, cut into rounds of ``steps`` batches."""

    job: StageJob
    steps: int

    @property
    def rows(self) -> OpenRows:
        return self.job.rows("train").open()

    def batches(self, number: int) -> list[pa.Table]:
        """The batches of a round as the stage draws them: like lengths, equal histories together."""
        rows, job = self.rows, self.job
        shared = rows.shared if job.most_shared > 1 else None
        plan = Plan(rows.lengths, job.settings.batch, 4 * self.steps, 0, shared, job.most_shared)
        return [rows.fetch(plan.step((number + 1) * self.steps + step)) for step in range(self.steps)]

    def shuffled(self, number: int) -> list[pa.Table]:
        """The same rows in batches as a shuffling loader draws them."""
        table = pa.concat_tables(self.batches(number))
        order = np.random.default_rng(number + 1).permutation(table.num_rows)
        size = self.job.settings.batch
        return [table.take(order[start : start + size]) for start in range(0, table.num_rows, size)]
