"""A run: its folder, bound to one configuration, and what its prepared data says."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayrec import storage
from rayrec.binding import RUN, bind, is_bound
from rayrec.config import Config, identity
from rayrec.stages import Part, StageName
from rayrec.store import Prepared, stage_jobs, store_folder
from rayrec.systems import SYSTEMS, SystemName, titles
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import CARD, WEIGHTS

_UNBOUND = {"name", "cluster"}  # settings that may change under one name


@dataclass(frozen=True)
class Run:
    """``{storage}/{name}`` and the configuration it is bound to."""

    config: Config
    place: str | None = None  # its folder, where that is another; an experiment's runs lie below the experiment's
    prepared: str | None = None  # folder of prepared data that several runs share

    @property
    def folder(self) -> str:
        return self.place or storage.join(storage.absolute(self.config.storage), self.config.name)

    def path(self, *names: str) -> str:
        return storage.join(self.folder, *names)

    def check_name(self) -> None:
        """Raises ``InputError`` where the name already holds another configuration, and data prepared with it."""
        self._is_bound()

    def bind(self) -> None:
        """Sweep the folder and write ``config.yaml``; once data is prepared with it, the name stands for it.

        Raises:
            InputError: the name holds another configuration, or the storage cannot be written.
        """
        storage.check_writable(self.folder)
        bound = self._is_bound()
        storage.sweep(self.folder)
        if not bound:
            bind(self.folder, RUN, identity(self.config), self.config.model_dump(mode="json", include=_UNBOUND))

    def _is_bound(self) -> bool:
        """A first try with a mistake in it, which prepared no data, binds nothing."""
        return self.data.is_complete and is_bound(self.folder, RUN, identity(self.config))

    @cached_property
    def data(self) -> Prepared:
        return Prepared(self.prepared or self.path("data"))

    @property
    def manifest(self) -> dict[str, Any]:
        """Raises ``InputError`` where nothing is prepared yet."""
        return self.data.manifest

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that it trains, in that order."""
        return self.config.run_stages

    @property
    def systems(self) -> tuple[SystemName, ...]:
        """The systems that it scores: all that need none but its own stages; ensembles belong to experiments."""
        there, task = (None, *self.stages), self.config.data.task
        specs = {system: spec for system, spec in SYSTEMS.items() if task in spec.tasks and not spec.members}
        return tuple(system for system, spec in specs.items() if spec.after in there)

    @property
    def titles(self) -> dict[SystemName, str]:
        """Their names in tables, in that order."""
        encoder = self.config.encoder
        named = titles(encoder.kind, self.config.data.task, from_names=encoder.initial is not None)
        return {system: named[system] for system in self.systems}

    @property
    def facts(self) -> DataFacts:
        return self.data.facts(self.config)

    def stage_jobs(self) -> dict[StageName, StageJob]:
        """The run's stages; their prompts must be written."""
        return stage_jobs(self.config, self.data, store_folder(self.config), self.path("parts"))

    def part_folder(self, stage: StageName, part: Part) -> str:
        """Where the run keeps a part as a stage left it."""
        return self.path("parts", stage.value, part.value)

    def holds(self, stage: StageName) -> bool:
        """The run has all parts that the stage trains."""
        trained = self.config.stages.trained(stage)
        return all(storage.exists(storage.join(self.part_folder(stage, part), CARD)) for part in trained)

    def take(self, job: StageJob) -> None:
        """Copy a complete stage's log and parts out of the store."""
        log = storage.join(job.folder, "progress.jsonl")
        storage.write_bytes(self.path("stages", job.stage.value, "progress.jsonl"), storage.read_bytes(log))
        for part in job.trains:
            files = {name: storage.read_bytes(storage.join(job.part_folder(part), name)) for name in (WEIGHTS, CARD)}
            storage.publish(self.part_folder(job.stage, part), files, mark=CARD)
