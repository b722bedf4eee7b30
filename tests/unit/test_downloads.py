"""An https source: verified, fetched once however many ask, given up in time, and nothing half-written is kept."""

import fcntl
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from origins import NOISE, WHAT, Server, failure, leftovers, sha256, zipped

from rayrec import sources
from rayrec.sources import fetch


def test_a_download_is_verified_and_cached(server: Server, cache: Path) -> None:
    source = server.offer("/ratings.csv", b"a,b\n" * 1000)
    file = fetch([source], what=WHAT, cache=cache)
    assert file.name == "ratings.csv"
    assert file.read_bytes() == b"a,b\n" * 1000
    server.content.clear()
    assert fetch([source], what=WHAT, cache=cache) == file
    assert server.hits == ["GET /ratings.csv"]
    assert not list((cache / "partial").iterdir())


def test_a_cached_file_that_changed_is_fetched_again(server: Server, cache: Path) -> None:
    source = server.offer("/ratings.csv", b"right")
    file = fetch([source], what=WHAT, cache=cache)
    file.write_bytes(b"wrong")  # same size: only the hash tells
    assert fetch([source], what=WHAT, cache=cache).read_bytes() == b"right"
    assert len(server.hits) == 2


def test_a_downloaded_archive_is_unpacked(server: Server, cache: Path) -> None:
    content = zipped({"toy/u.data": b"1", "toy/sub/u.item": b"2"})
    folder = fetch([server.offer("/toy.zip", content)], what=WHAT, cache=cache)
    assert sorted(path.name for path in folder.iterdir()) == ["sub", "u.data"]
    item = fetch([server.offer("/download", content, "&member=toy/sub/u.item")], what=WHAT, cache=cache)
    assert item.read_bytes() == b"2"
    assert server.hits == ["GET /toy.zip"]  # the same hash is the same archive
    assert not list(cache.rglob("*.zip"))


@pytest.mark.parametrize("path", ["/u.csv", "/u.zip"])
def test_a_wrong_hash_fails_and_nothing_is_kept(server: Server, cache: Path, path: str) -> None:
    server.content[path] = b"other"
    message = failure(f"{server.url}{path}#sha256={'a' * 64}", cache)
    assert f"its sha256 is {sha256(b'other')}, expected {'a' * 64}; the file was not kept" in message
    assert leftovers(cache) == []


def test_a_cut_download_fails_and_nothing_is_kept(server: Server, cache: Path) -> None:
    source = server.offer("/u.csv", b"1234")
    server.declared["/u.csv"] = 9
    assert "cut short" in failure(source, cache)
    assert leftovers(cache) == []


def test_other_answers_of_a_server_fail(server: Server, cache: Path) -> None:
    assert "HTTP 404" in failure(f"{server.url}/none#sha256={'a' * 64}", cache)
    port = server.http.server_address[1]
    assert "not reachable" in failure(f"https://127.0.0.1:{port}/u#sha256={'a' * 64}", cache)  # speaks no TLS


def test_a_silent_server_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        message = failure(f"https://127.0.0.1:{silent.getsockname()[1]}/u#sha256={'a' * 64}", cache)
    assert "timed out" in message
    assert time.monotonic() - started < 2


def test_many_at_once_download_once(server: Server, cache: Path) -> None:
    source = server.offer("/toy.zip", zipped({"toy/u.data": NOISE}))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch([source], what=WHAT, cache=cache), range(8)))
    assert len(folders) == 1
    assert (folders.pop() / "u.data").read_bytes() == NOISE
    assert server.hits == ["GET /toy.zip"]


def test_without_locks_the_faster_process_wins(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = server.offer("/toy.zip", zipped({"toy/u.data": NOISE}))
    download = sources._download
    nested: list[str] = []

    def overtaken(url: str, sha256: str, target: Path) -> Path:
        if not nested:
            nested.append("under way")
            nested.append(str(fetch([source], what=WHAT, cache=cache)))
        return download(url, sha256, target)

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(sources, "_download", overtaken)
    folder = fetch([source], what=WHAT, cache=cache)
    assert nested[1:] == [str(folder)]
    assert (folder / "u.data").read_bytes() == NOISE
    assert len(server.hits) == 2
