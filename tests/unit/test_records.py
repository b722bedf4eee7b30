"""Files of one record a line: both dialects, whole and damaged."""

import ast
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrec.data import records
from rayrec.data.records import open_records
from rayrec.errors import InputError

HOSTILE: list[dict[str, Any]] = [
    {"id": "it's", "name": 'a "b", {c}: \\ / é 🎬', "more": {"x": [1, {"y": None}]}, "ok": True},
    {"id": 7, "name": "two\nlines\r\n\u2028and a tab\t", "more": [], "ok": False},
    {"id": 8.0, "name": None},
    {"name": "no id", "ok": True, "x": 1.5},
]
EXPECTED = {"id": ["it's", "7", "8", None], "name": [row.get("name") for row in HOSTILE]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))


def python2(row: dict[str, Any]) -> str:
    """As Python 2 printed it: every text is ``u'...'``, in ASCII."""
    shown = (f"u{key!r}: {'u' if isinstance(value, str) else ''}{value!a}" for key, value in row.items())
    return f"{{{', '.join(shown)}}}"


def written(path: Path, lines: list[str], end: str = "\n") -> Path:
    content = end.join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, *names: str) -> dict[str, list[Any]]:
    source = open_records(path, names)
    found: dict[str, list[Any]] = {name: [] for name in names}
    for block in source.blocks(list(names)):
        for name in names:
            found[name] += block[name].to_pylist()
    return found


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("show", [json.dumps, repr, python2, lambda row: json.dumps(row, ensure_ascii=False)])
def test_dialects(show: Callable[[dict[str, Any]], str], end: str, name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, [show(row) for row in HOSTILE], end)
    assert read(path, "id", "name") == EXPECTED


def test_dialects_may_be_mixed_and_a_mark_may_stand_before(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", ["\ufeff" + json.dumps(HOSTILE[0]), repr(HOSTILE[1])])
    assert read(path, "id") == {"id": ["it's", "7"]}


def test_nothing_is_as_pandas_writes_it(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", ['{"id": NaN, "n": 3.0}', '{"id": "a", "n": 3.5}', '{"id": 12, "n": null}'])
    assert read(path, "id", "n") == {"id": [None, "a", "12"], "n": ["3", "3.5", None]}


def test_halves_of_a_character_become_one(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", [r"{u'id': u'\ud83c\udfac x'}", r'{"id": "\ud83c"}'])
    assert read(path, "id") == {"id": ["🎬 x", "\ufffd"]}


def test_a_row_stands_in_its_line_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_BLOCK_LINES", 2)
    path = written(tmp_path / "rows.json", ["", *(json.dumps({"id": i}) for i in range(5)), " ", "{'id': 5}"])
    source = pickle.loads(pickle.dumps(open_records(path, ["id"])))  # as Ray does it
    assert (source.where(0), source.where(4), source.where(5)) == ("line 2", "line 6", "line 8")
    assert source.columns() == ["id"]
    monkeypatch.setattr(records, "_record", None)
    assert open_records(path, ["id"]) == source
    assert read(path, "id") == {"id": list("012345")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': __import__('os').system('true')}", "no record, neither as JSON nor as a Python dictionary"),
        ("{'id': 1", "no record"),
        ("[1, 2]", "no record"),
        ("{'id': 1} {'id': 2}", "no record"),
        ("{[]: 1}", "no record"),
        ("[" * 100_000, "no record"),
        ("{'id': " + "-" * 5000 + "1}", "no record"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", ["{'id': 0}", line])
    with pytest.raises(InputError, match=f"rows.json, line 2: {message}"):
        open_records(path, ["id"])
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_damage_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"{{'id': '{i * 7919 % 10_007}'}}\n" for i in range(3000)).encode())
    for content, message in (
        (whole[: len(whole) // 2], "rows.gz: damaged or cut short"),
        (whole[:2000] + b"\0" * 50 + whole[2050:], "rows.gz: damaged or cut short|no record|not UTF-8"),
        (b"", "rows.gz: the file is empty"),
        (b"{'id': '\xff'}\n", "rows.gz, line 1: not UTF-8"),
    ):
        (tmp_path / "rows.gz").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            open_records(tmp_path / "rows.gz", ["id"])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"nothing.json: no such file"):
        open_records(tmp_path / "nothing.json", ["id"])


def test_a_file_without_lines_is_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MOST", 64)
    path = written(tmp_path / "rows.json", ["{'id': 1}", f"{{'id': '{'x' * 64}'}}"])
    with pytest.raises(InputError, match="line 2: longer than 64 bytes; expected one record a line"):
        open_records(path, ["id"])


def test_a_field_that_no_record_has_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", ["{'id': 1, 'b': 2}", "{'c': 3}"])
    with pytest.raises(
        InputError, match=r"rows.json: no record has a field 'asin'; found: id, b, c; check data.sources"
    ):
        open_records(path, ["id", "asin"])


def test_every_record_is_a_literal() -> None:
    """What the dialects are made of here is what Python reads back."""
    assert [ast.literal_eval(python2(row)) for row in HOSTILE] == HOSTILE
