"""A cache of folders, each there whole or not at all.

An entry is a folder ``files`` beside a manifest of sizes, moved into place in one step; half-written data lives in
``partial`` alone.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

_MANIFEST = "manifest.json"
_log = logging.getLogger("rayrec")


def cache_folder() -> Path:
    """``RAYREC_CACHE``, else the user's cache folder."""
    if own := os.environ.get("RAYREC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayrec"


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def built(cache: Path, key: str, build: Callable[[Path], object], *, sha256: str | None = None) -> Path:
    """The folder that ``build`` fills; from the cache if it is whole there (``sha256``: of the one file in it)."""
    entry = cache / key
    files = entry / "files"
    with locked(cache, key):
        if recorded(entry / _MANIFEST) and (sha256 is None or {*map(file_sha256, files.iterdir())} == {sha256}):
            return files
        shutil.rmtree(entry, ignore_errors=True)
        _log.info("fetching %s into %s", key, cache)
        (cache / "partial").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / "partial") as scratch:
            new = Path(scratch) / "entry"
            (new / "files").mkdir(parents=True)
            build(new / "files")
            record(new / _MANIFEST, new / "files")
            entry.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.replace(entry)
            except OSError:  # where a file system has no locks, another process may have been faster
                if not recorded(entry / _MANIFEST):
                    raise
    return files


@contextmanager
def locked(cache: Path, key: str) -> Iterator[None]:
    """One process at a time per key: the others wait, and then find the work done."""
    path = cache / "locks" / quote(key, safe="")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes away with the process, however that ends
        yield


def record(manifest: Path, folder: Path) -> None:
    """Writes ``manifest``, in one step: the size of every file in ``folder``."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    content = {"folder": str(folder.relative_to(manifest.parent)), "sizes": sizes}
    scratch = manifest.with_name(f"{manifest.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content), encoding="utf-8")
    scratch.replace(manifest)


def recorded(manifest: Path) -> Path | None:
    """The folder that ``manifest`` tells of, if every file is there in its size."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        folder = manifest.parent / content["folder"]
        whole = all((folder / name).stat().st_size == size for name, size in content["sizes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return folder if whole else None
