"""What lies in the storage is whole or absent."""

from pathlib import Path
from typing import Any

import pytest
from remains import Killed, everything

from rayrec import storage
from rayrec.errors import InputError

FILES = {"mark.json": b"{}", "a.bin": b"a" * 1000, "z.bin": b"z" * 1000}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    uri = f"{tmp_path}/a/b/c.txt"
    assert not storage.exists(uri)
    storage.write_text(uri, "ä\n")
    storage.write_text(uri, "ö\n")
    assert storage.exists(uri) and storage.read_text(uri) == "ö\n" and storage.read_bytes(uri) == "ö\n".encode()
    (tmp_path / "local").write_bytes(b"x" * 10)
    storage.write_file(f"{tmp_path}/d/e", tmp_path / "local")
    assert storage.read_bytes(f"{tmp_path}/d/e") == b"x" * 10
    assert storage.names(str(tmp_path)) == ["a", "d", "local"] and storage.names(f"{tmp_path}/none") == []
    for gone in ("a", "local", "none"):
        storage.delete(f"{tmp_path}/{gone}")
    assert everything(tmp_path) == {"d/e"}


def test_what_is_half_written_is_swept(tmp_path: Path) -> None:
    for name in ("a.json", "a.json.1234abcd.partial", "deep/b.partial/c", "deep/partial"):
        storage.write_text(f"{tmp_path}/{name}", "{")
    storage.sweep(str(tmp_path))
    assert everything(tmp_path) == {"a.json", "deep/partial"}
    storage.sweep(f"{tmp_path}/none")


def test_a_folder_is_uploaded_as_it_is(tmp_path: Path) -> None:
    storage.write_text(f"{tmp_path}/from/sub/x", "1")
    storage.write_text(f"{tmp_path}/from/y", "2")
    storage.upload(tmp_path / "from", f"{tmp_path}/to")
    assert everything(tmp_path / "to") == {"sub/x", "y"}


@pytest.mark.parametrize("is_uri", [False, True], ids=["path", "uri"])
def test_a_file_is_there_once_it_is_whole(is_uri: bool, tmp_path: Path) -> None:
    target = tmp_path / "lists.parquet"
    uri = target.as_uri() if is_uri else str(tmp_path / "lists.parquet")
    for content in ("first", "second"):
        with storage.whole(uri) as path:
            path.write_text(content)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == content
    with pytest.raises(Killed), storage.whole(uri) as path:
        path.write_text("half")
        raise Killed
    assert target.read_text() == "second" and everything(tmp_path) == {"lists.parquet"}
    assert storage.is_folder(str(tmp_path)) and not storage.is_folder(uri) and not storage.is_folder(f"{tmp_path}/no")
    with storage.open_file(uri) as file:
        file.seek(3)
        assert file.read() == b"ond"


@pytest.fixture(params=["path", "uri"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A folder to publish, by its path (one rename) and by a URI (its mark last), as on an object store."""
    folder = tmp_path / "published"
    if request.param == "path":
        return str(folder), folder
    folder.mkdir()  # object stores need no folders
    return folder.as_uri(), folder


def test_published_is_whole(place: tuple[str, Path]) -> None:
    uri, folder = place
    storage.publish(uri, FILES, mark="mark.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    storage.publish(uri, FILES | {"a.bin": b"new"}, mark="mark.json")
    assert (folder / "a.bin").read_bytes() == b"new"
    assert everything(folder.parent) == {f"published/{name}" for name in FILES}


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_a_mark_is_never_without_its_files(
    place: tuple[str, Path], writes: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of files: the mark is absent, or all files are those that it was written with."""
    uri, folder = place
    if before:
        storage.publish(uri, FILES, mark="mark.json")
    left = writes
    write_path, write_uri = Path.write_bytes, storage.write_bytes

    def counted(write: Any) -> Any:
        def limited(*arguments: Any) -> Any:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return write(*arguments)

        return limited

    monkeypatch.setattr(Path, "write_bytes", counted(write_path))
    monkeypatch.setattr(storage, "write_bytes", counted(write_uri))
    with pytest.raises(Killed):
        storage.publish(uri, dict.fromkeys(FILES, b"new"), mark="mark.json")
    if (folder / "mark.json").exists():
        assert before and {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    elif uri == str(folder):
        assert not before and not folder.exists()


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/x"
    storage.write_bytes(uri, b"old")
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(storage.read_bytes(uri))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    storage.write_bytes(uri, b"new" * 1000)
    assert seen == [b"old"] and storage.read_bytes(uri) == b"new" * 1000
    assert everything(tmp_path) == {"x"}


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_writable(f"{tmp_path}/runs")
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("uri", ["{}/file", "{}/file/below", "nosuch://bucket/run"])
def test_a_place_that_cannot_be_written_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written") as caught:
        storage.check_writable(uri.format(tmp_path))
    message = str(caught.value)
    assert uri.format(tmp_path) in message and "set `storage`" in message and "\n" not in message
    assert everything(tmp_path) == {"file"}


def test_uris_stay_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path.resolve() / "runs")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert storage.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
