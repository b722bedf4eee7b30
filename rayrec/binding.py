"""A name stands for one configuration: the file that binds the folder of a run, search or experiment to it."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from rayrec import __version__, storage
from rayrec.config import differences, fingerprint
from rayrec.errors import InputError

_SHOWN_PACKAGES = ("torch", "ray", "transformers", "peft", "deepspeed", "pyarrow", "numpy", "scikit-learn")
_SHOWN_CHANGES = 5
RUN, SEARCH, EXPERIMENT = "config.yaml", "search.yaml", "experiment.yaml"
_WHAT = {RUN: "run", SEARCH: "search", EXPERIMENT: "experiment"}


def is_bound(folder: str, file: str, identity: Mapping[str, Any]) -> bool:
    """Whether ``file`` (RUN, SEARCH or EXPERIMENT) binds the folder to ``identity``; False where it is not there.

    Raises:
        InputError: the folder is bound to another.
    """
    start = f"{folder}: the name {folder.rpartition('/')[2]!r} already holds"
    for other, what in _WHAT.items():
        if other != file and storage.exists(storage.join(folder, other)):
            raise InputError(f"{start} a {what}; choose another name")
    path = storage.join(folder, file)
    if not storage.exists(path):
        return False
    held = yaml.safe_load(storage.read_text(path))
    if held["fingerprint"] != fingerprint(identity):
        changed = "; ".join(differences(held["config"], identity)[:_SHOWN_CHANGES])
        raise InputError(f"{start} another configuration ({changed}); choose another name or delete the folder")
    return True


def bind(folder: str, file: str, identity: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write the file; ``run`` is what may change under one name, for the reader."""
    content = {
        "fingerprint": fingerprint(identity),
        "versions": package_versions(),
        "run": dict(run),
        "config": dict(identity),
    }
    storage.write_text(storage.join(folder, file), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def package_versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    versions = {"rayrec": __version__, "python": platform.python_version()}
    for package in _SHOWN_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
