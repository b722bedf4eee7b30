"""A stage to run, as plain data that travels to every worker."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from rayrec import storage
from rayrec.batch import Batch
from rayrec.config import Config, micro_batch_rows
from rayrec.config.training import Precision, StageConfig
from rayrec.data.asked import ASKED_ROWS
from rayrec.data.beside import Beside, read_beside
from rayrec.data.collate import Cut, collate
from rayrec.data.rows import RowSource
from rayrec.data.streams import WorkerOrder
from rayrec.stages import STAGES, Metric, Part, StageName, StageSpec


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the manifest says of the prepared data, with ``max_len`` resolved."""

    users: int
    items: int
    max_len: int
    rows: dict[str, int]  # split -> rows


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """One stage to train. Folders are absolute paths or URIs that every worker sees."""

    config: Config
    stage: StageName
    facts: DataFacts
    data: str  # folder of the prepared data
    folder: str = ""  # where the stage works and leaves its parts
    fingerprint: str = ""  # of all that determines the result
    origins: Mapping[Part, str] = field(default_factory=dict)  # part that is not drawn -> folder it starts from
    initial: str = ""  # folder of the vectors that the encoder's items start from; none: they are drawn

    @property
    def spec(self) -> StageSpec:
        return STAGES[self.stage]

    @property
    def settings(self) -> StageConfig:
        return self.config.stages[self.stage]

    @property
    def trains(self) -> tuple[Part, ...]:
        return tuple(sorted(self.config.stages.trained(self.stage)))

    @property
    def parts(self) -> frozenset[Part]:
        """Every part that the stage's model holds, trained or frozen."""
        return self.config.stages.parts(self.stage)

    @property
    def precision(self) -> Precision:
        """The encoder alone is tiny and trains in fp32; the configured precision is for the backbone."""
        return self.config.engine.precision if self.spec.reads.uses_backbone else "fp32"

    @property
    def accumulation(self) -> int:
        return self.settings.batch // (self.micro_batch * self.config.cluster.least)

    @property
    def micro_batch(self) -> int:
        return micro_batch_rows(self.config, self.stage, self.config.cluster.least)

    def on(self, workers: int) -> "StageJob":
        """The same stage on a group of this size."""
        cluster = self.config.cluster.model_copy(update={"workers": workers})
        return replace(self, config=self.config.model_copy(update={"cluster": cluster}))

    @property
    def most_shared(self) -> int:
        """Rows of one history that are drawn together."""
        fast = self.config.fast
        return fast.shared_rows if self.spec.reads.uses_backbone and fast.split_prompts else 1

    @property
    def cut(self) -> Cut:
        """Where prompts are cut in training."""
        return Cut.LEARNING if self.config.fast.split_prompts else Cut.NOWHERE

    def micro_batches(self, rows: pa.Table) -> list[Batch]:
        """A worker's rows of an optimizer step, in as many equal slices as gradients are accumulated over."""
        size = rows.num_rows // self.accumulation
        pieces = [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
        return [collate(piece, self.config.mapper.tokens, self.cut) for piece in pieces]

    @property
    def judged_by(self) -> Metric:
        """What chooses among its checkpoints; more is better."""
        return self.config.judged_by(self.stage)

    @property
    def scoring_batch(self) -> int:
        return self.config.evaluation.rows_at_once(with_backbone=self.spec.reads.uses_backbone)

    @property
    def beside(self) -> frozenset[Beside]:
        """What the stage reads besides the rows."""
        return read_beside(self.config, self.spec.reads)

    @property
    def training_rows(self) -> int:
        """Rows of a pass over the data, which ``facts`` has without those that are asked about beside each."""
        return self.facts.rows["train"] * (ASKED_ROWS if Beside.ASKED in self.beside else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; a pass over the data drops its incomplete last batch."""
        return self.settings.steps_per_epoch or max(1, self.training_rows // self.settings.batch)

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    def part_folder(self, part: Part) -> str:
        """Where the stage leaves a part."""
        return storage.join(self.folder, "parts", part.value)

    def order(self, rank: int, world: int) -> WorkerOrder:
        """The rows that a worker trains on, step by step."""
        return WorkerOrder(
            source=self.rows("train"),
            batch=self.settings.batch,
            steps_per_epoch=self.steps_per_epoch,
            seed=derive_seed(self.config.seed, self.stage, "order"),
            rank=rank,
            world=world,
            most_shared=self.most_shared,
        )

    def rows(self, split: str) -> RowSource:
        """A split as this stage reads it."""
        return RowSource(self.data, split, self.spec.reads, self.facts.max_len, self.beside)


def derive_seed(*names: object) -> int:
    """A 63-bit seed from what names the draw: independent of process, platform and order of calls."""
    digest = hashlib.sha256(repr(tuple(str(name) for name in names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
