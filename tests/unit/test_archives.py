"""An archive is unpacked whole, once and inside its folder, or fails in one line and leaves nothing."""

import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from origins import NOISE, WHAT, failure, leftovers, tarred, zipped

from rayrec import archives
from rayrec.sources import fetch


def tar_info(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


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
    ids=lambda value: "bytes" if isinstance(value, bytes) else value,  # of a tgz they hold the time it was made
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


@pytest.mark.parametrize(
    ("places", "value", "message"),
    [((6, 8), 1, "'a.csv' needs a password"), ((8, 10), 97, "'a.csv' is packed in a way")],
    ids=["password", "unknown compression"],
)
def test_a_zip_that_cannot_be_read_says_why(
    places: tuple[int, int], value: int, message: str, tmp_path: Path, cache: Path
) -> None:
    """Two bytes of both headers of a member: its flags, or its compression."""
    content = bytearray(zipped({"a.csv": b"1"}))
    for mark, at in zip((b"PK\x03\x04", b"PK\x01\x02"), places, strict=True):
        content[content.index(mark) + at] = value
    path = tmp_path / "toy.zip"
    path.write_bytes(content)
    assert message in failure(str(path), cache)
    assert leftovers(cache) == []
