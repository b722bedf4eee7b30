"""Files under a run's storage: a path, or a URI such as ``s3://bucket/run`` that pyarrow can open.

What must be whole is published: on a file system by one rename, elsewhere by writing its mark last.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rayrec.errors import InputError


def join(base: str, *names: str) -> str:
    """``base/name/...``."""
    return "/".join([base.rstrip("/"), *names])


def is_local(uri: str) -> bool:
    """A path rather than a URI."""
    return "://" not in uri


def absolute(uri: str) -> str:
    """A local path made absolute: workers run in other folders. A URI stays as it is.

    A submitted job runs in a copy of the working directory that goes away with it; there a relative path counts from
    the home folder.
    """
    uri = uri.removeprefix("file://")
    if not is_local(uri):
        return uri.rstrip("/")
    base = Path.home() if "RAY_ADDRESS" in os.environ else Path.cwd()
    return str((base / Path(uri).expanduser()).resolve())


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    if is_local(uri):
        return fs.LocalFileSystem(), uri
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def check_writable(uri: str, setting: str = "storage") -> None:
    """Write and delete a small file where ``uri`` is or would be; nothing is left, not even a folder.

    ``setting`` is what names it.

    Raises:
        InputError: that fails.
    """
    place = uri
    while is_local(place) and not Path(place).exists():
        place = str(Path(place).parent)
    probe = join(place, f".write-test-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except Exception as error:  # every file system fails in its own way
        raise InputError(f"{setting} {uri}: cannot be written ({error}); set `{setting}` to a place that can") from None


def exists(uri: str) -> bool:
    """There is a file or folder."""
    filesystem, path = _open(uri)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """There is a folder."""
    filesystem, path = _open(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)


def names(uri: str) -> list[str]:
    """Names of the entries of a folder, sorted; empty where there is none."""
    filesystem, path = _open(uri)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in entries)


def read_bytes(uri: str) -> bytes:
    """A whole file."""
    filesystem, path = _open(uri)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def open_file(uri: str) -> pa.NativeFile:
    """A file, to read any part of; whoever asks for it closes it."""
    filesystem, path = _open(uri)
    return filesystem.open_input_file(path)


def read_text(uri: str) -> str:
    """A whole UTF-8 file."""
    return read_bytes(uri).decode()


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file whole: readers see the old content or the new one."""
    filesystem, path = _open(uri)
    target = path
    if is_local(uri):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    with filesystem.open_output_stream(target) as stream:  # an object store shows an object once it is closed
        stream.write(content)
    if target != path:
        Path(target).replace(path)


def write_text(uri: str, text: str) -> None:
    """Write one UTF-8 file whole."""
    write_bytes(uri, text.encode())


def write_file(uri: str, local: Path) -> None:
    """Copy one local file whole, in pieces."""
    filesystem, path = _open(uri)
    if is_local(uri):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        shutil.copyfile(local, partial)
        partial.replace(target)
        return
    fs.copy_files(str(local), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)


@contextmanager
def whole(uri: str) -> Iterator[Path]:
    """A local path to write a file to: it is at ``uri`` once the block has ended well, and nowhere if it raises."""
    if is_local(uri):
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "file"
        write_file(uri, Path(scratch) / "file")


def delete(uri: str) -> None:
    """Delete a file or a folder with all that it holds; nothing happens where there is none."""
    filesystem, path = _open(uri)
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind != fs.FileType.NotFound:
        filesystem.delete_file(path)


def sweep(folder: str) -> None:
    """Delete what killed processes left half-written anywhere below a folder.

    For the one job that writes there, before it does; on an object store nothing is ever left.
    """
    if is_local(folder):
        for left in sorted(Path(folder).rglob("*.partial")):
            delete(str(left))


def publish(uri: str, files: Mapping[str, bytes], mark: str) -> None:
    """Write a folder of files so that ``mark``, one of them, is there only when all the others are."""
    if is_local(uri):
        target = Path(uri)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir(parents=True)
        try:
            for name, content in files.items():
                (partial / name).write_bytes(content)
            if target.exists():
                shutil.rmtree(target)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return
    delete(join(uri, mark))
    for name in sorted(files, key=lambda name: name == mark):
        write_bytes(join(uri, name), files[name])


def upload(folder: Path, uri: str) -> None:
    """Copy a local folder's files below ``uri``."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        write_file(join(uri, path.relative_to(folder).as_posix()), path)
