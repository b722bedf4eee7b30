"""The rows that both sides of a comparison train on."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

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
        plan = replace(self.job.order(0, 1), steps_per_epoch=_EPOCH * self.steps).plan()
        return [rows.fetch(plan.step(step)) for step in range(first, first + self.steps)]

    def shuffled(self, number: int) -> list[pa.Table]:
        """The same rows in batches as a shuffling loader draws them."""
        table = pa.concat_tables(self.batches(number))
        order = np.random.default_rng(number + 1).permutation(table.num_rows)
        size = self.job.settings.batch
        return [table.take(order[start : start + size]) for start in range(0, table.num_rows, size)]
