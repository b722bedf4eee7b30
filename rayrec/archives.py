"""Safe unpacking of zip and tar: no member leads out of the folder, is a link or a device, or grows without limit."""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

UNPACK_LIMIT = 20 * 1000**3  # bytes; a small archive that unpacks to more is taken for a zip bomb

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_ENCRYPTED = 1  # bit of a zip member's flags
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError)


class ArchiveError(Exception):
    """The archive is damaged, unsafe, or lacks what is asked for."""


class _Member(NamedTuple):
    name: str
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(name: str, member: str | None) -> bool:
    """Whether a file of that name is to be unpacked: by its suffix, or because a member of it is asked for."""
    return member is not None or name.lower().endswith(_SUFFIXES)


def leaves(name: str) -> bool:
    """Whether a member of that name would lie outside the folder it is unpacked into."""
    path = PureWindowsPath(name)  # knows both separators and drives
    return bool(path.anchor) or ".." in path.parts or "\0" in name


def inside(folder: Path, member: str | None) -> Path:
    """``member``, counted from the archive's root or from its single top folder; without one, that folder or root."""
    tops = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() else folder
    if member is None:
        return top
    for base in (folder, top):
        if (base / member).exists():
            return base / member
    raise ArchiveError(f"holds no {member!r}")


def unpack(archive: Path, folder: Path, *, only: str | None = None) -> None:
    """Unpacks into an empty folder: everything, or the one member ``only`` (file or folder) under its last name."""
    left, found = UNPACK_LIMIT, False
    try:
        for member in _members(archive):
            if only and member.name.rstrip("/") != only and not member.name.startswith(f"{only}/"):
                continue
            if leaves(member.name):
                raise ArchiveError(f"unsafe archive: member {member.name!r} leads out of it; get it elsewhere")
            target = folder / PurePosixPath(member.name).relative_to(PurePosixPath(only or "").parent)
            left -= _write(member, target, left)
            found = True
    except _DAMAGE as error:
        raise ArchiveError(f"the archive is damaged or cut short ({error}); get it again") from None
    if not found:
        raise ArchiveError(f"holds no {only!r}" if only else "the archive is empty")


def _write(member: _Member, target: Path, limit: int) -> int:
    """Bytes written; counted here, because the size that an archive declares may be a lie."""
    source = None if member.is_folder else member.open()
    (target.parent if source else target).mkdir(parents=True, exist_ok=True)
    if source is None:
        return 0
    written = 0
    with source, target.open("wb") as file:
        while chunk := source.read(1 << 20):
            written += file.write(chunk)
            if written > limit:
                raise ArchiveError(f"unsafe archive: unpacks to more than {UNPACK_LIMIT} bytes")
    return written


def _members(archive: Path) -> Iterator[_Member]:
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for info in tar:
                if not (info.isreg() or info.isdir()):
                    raise ArchiveError(f"unsafe archive: member {info.name!r} is a link or a device; get it elsewhere")
                yield _Member(info.name, info.isdir(), partial(tar.extractfile, info))
            if not (tar.fileobj and tar.fileobj.seek(tar.offset) == tar.offset and tar.fileobj.read(1)):
                raise EOFError("its end mark is missing")  # a cut between two members, which tarfile lets pass
        return
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"unsafe archive: member {entry.filename!r} is a link or a device; get it elsewhere")
            if entry.flag_bits & _ENCRYPTED:
                raise ArchiveError(f"member {entry.filename!r} needs a password; get the archive without one")
            if entry.compress_type not in _COMPRESSIONS:
                raise ArchiveError(
                    f"member {entry.filename!r} is packed in a way that is not known here (method"
                    f" {entry.compress_type}); get the archive packed anew"
                )
            yield _Member(entry.filename, entry.is_dir(), partial(zipped.open, entry))
