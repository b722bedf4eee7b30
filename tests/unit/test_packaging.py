"""What a fresh machine installs is pinned, and every configuration, job and command that is named works or exists."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rayrec.settings import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
LINES = [line for line in map(str.strip, CONSTRAINTS.splitlines()) if line and not line.startswith("#")]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))  # searches and benchmarks have files of another kind, in folders
JOBS = sorted((ROOT / "jobs").glob("*.py"))
README = ROOT / "README.md"


def pinned(python: str) -> list[str]:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = map(Requirement, LINES)
    return [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]


def test_a_pin_is_one_exact_version() -> None:
    assert LINES
    for line in LINES:
        pin = Requirement(line)  # what is no pin but an option of pip's does not parse
        (specifier,) = pin.specifier
        assert specifier.operator == "==", line
        # Neither a wildcard nor a local tag, which would tie it to one build.
        assert re.fullmatch(r"[0-9a-z.]+", specifier.version), line
        assert not (pin.url or pin.extras), line
        assert not pin.name.startswith("nvidia"), line  # torch's own build names those


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_once(python: str) -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = [canonicalize_name(Requirement(line).name) for group in groups for line in group]
    found = pinned(python)
    assert [name for name in names if found.count(name) != 1] == []
    assert len(found) == len(set(found))


def test_no_index_is_named() -> None:
    """Packages come from where this machine's pip is set up to look: no address, and pip is told none."""
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for scheme in ("http://", "https://", "file://", "ssh://"):
            assert scheme not in text, name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [line.split() for line in makefile.splitlines() if " -m pip " in line]
    assert commands
    for words in commands:
        options = {word for word in words if word.startswith("-")}
        assert options <= {"-m", "-qq", "-c", "--build-constraint", "-e"}, words


def test_continuous_integration_can_start() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads(path: Path) -> None:
    assert load(path).name


@pytest.mark.skipif(not JOBS, reason="jobs/ is empty")
def test_a_job_can_be_run() -> None:
    for path in JOBS:
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n"), path
        assert os.access(path, os.X_OK), path


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
def test_the_readmes_commands_exist() -> None:
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    commands = "\n".join(line.partition("#")[0] for block in blocks for line in block.splitlines())
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)", commands):
        assert target in targets, f"make {target}"
    for path in re.findall(r"\b(?:jobs|configs)/[\w./-]+\.(?:py|yaml)", commands):
        assert (ROOT / path).is_file(), path
