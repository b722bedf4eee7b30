"""A run: its folder, bound to one configuration, and what its prepared data says."""

import json
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from rayrec import __version__, storage
from rayrec.config import Config, differences, fingerprint, identity
from rayrec.errors import InputError
from rayrec.stages import StageName
from rayrec.training.job import DataFacts, StageJob

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
        if not (storage.exists(path) and self.is_prepared):
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
        if not (storage.exists(path) and self.is_prepared):  # a first try with a mistake in it binds nothing
            content = {
                "fingerprint": fingerprint(identity(self.config)),
                "versions": package_versions(),
                "run": self.config.model_dump(mode="json", include={"name", "cluster"}),
                "config": identity(self.config),
            }
            storage.write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @property
    def is_prepared(self) -> bool:
        return storage.exists(self.path("data", "manifest.json"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Raises ``InputError`` where nothing is prepared yet."""
        path = self.path("data", "manifest.json")
        if not storage.exists(path):
            raise InputError(f"{path}: the data is not prepared yet; run jobs/prepare.py with this configuration first")
        manifest: dict[str, Any] = json.loads(storage.read_text(path))
        return manifest

    @property
    def facts(self) -> DataFacts:
        wanted = self.config.encoder.max_len
        mean = float(self.manifest["mean_liked_per_training_user"])
        return DataFacts(
            items=self.manifest["items"],
            max_len=max(1, round(mean)) if wanted == "auto" else wanted,
            rows={split: counts["rows"] for split, counts in self.manifest["splits"].items()},
        )

    def stage_job(self, stage: StageName) -> StageJob:
        return StageJob(config=self.config, stage=stage, run=self.folder, facts=self.facts)


def package_versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    versions = {"rayrec": __version__, "python": platform.python_version()}
    for package in _SHOWN_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
