"""A run: its folder, bound to one configuration, and what its prepared data says."""

import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from rayrec import __version__, storage
from rayrec.config import Config, differences, fingerprint, identity
from rayrec.errors import InputError
from rayrec.stages import STAGES, Part, StageName
from rayrec.store import Prepared, stage_jobs, store_folder
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import CARD, WEIGHTS

_SHOWN_PACKAGES = ("torch", "ray", "transformers", "peft", "deepspeed", "pyarrow", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """``{storage}/{name}`` and the configuration it is bound to."""

    config: Config

    @property
    def folder(self) -> str:
        return storage.join(storage.absolute(self.config.storage), self.config.name)

    def path(self, *names: str) -> str:
        return storage.join(self.folder, *names)

    def check_name(self) -> None:
        """Raises ``InputError`` where the name already holds another configuration, and data prepared with it."""
        path = self.path("config.yaml")
        if not (storage.exists(path) and self.data.is_complete):
            return
        held = yaml.safe_load(storage.read_text(path))
        if held["fingerprint"] != fingerprint(identity(self.config)):
            changed = "; ".join(differences(held["config"], identity(self.config))[:5])
            raise InputError(
                f"{self.folder}: the name {self.config.name!r} already holds another configuration ({changed});"
                " choose another name or delete the folder"
            )

    def bind(self) -> None:
        """Write ``config.yaml``; once data is prepared with it, the name stands for this configuration.

        Raises:
            InputError: the name holds another configuration, or the storage cannot be written.
        """
        storage.check_writable(self.folder)
        self.check_name()
        path = self.path("config.yaml")
        if not (storage.exists(path) and self.data.is_complete):  # a first try with a mistake in it binds nothing
            content = {
                "fingerprint": fingerprint(identity(self.config)),
                "versions": package_versions(),
                "run": self.config.model_dump(mode="json", include={"name", "cluster"}),
                "config": identity(self.config),
            }
            storage.write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @cached_property
    def data(self) -> Prepared:
        return Prepared(self.path("data"))

    @property
    def manifest(self) -> dict[str, Any]:
        """Raises ``InputError`` where nothing is prepared yet."""
        return self.data.manifest

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
        trains = self.config.stages[stage].trains or STAGES[stage].trains
        return all(storage.exists(storage.join(self.part_folder(stage, part), CARD)) for part in trains)

    def take(self, job: StageJob) -> None:
        """Copy a complete stage's log and parts out of the store."""
        log = storage.join(job.folder, "progress.jsonl")
        storage.write_bytes(self.path("stages", job.stage.value, "progress.jsonl"), storage.read_bytes(log))
        for part in job.trains:
            files = {name: storage.read_bytes(storage.join(job.part_folder(part), name)) for name in (WEIGHTS, CARD)}
            storage.publish(self.part_folder(job.stage, part), files, mark=CARD)


def package_versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    versions = {"rayrec": __version__, "python": platform.python_version()}
    for package in _SHOWN_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
