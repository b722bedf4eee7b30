"""Sessions that ask for recommendations: read whole by chunks, in the run's ids, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from left_out import ITEMS as COUNT
from left_out import write_rows

from rayrec.data import columns as c
from rayrec.errors import InputError
from rayrec.recommendation import requests
from rayrec.recommendation.requests import open_requests

# Items of the run are called i1 to i14, its users 0 to 9.
GIVEN: list[tuple[str, list[Any] | None, Any]] = [
    ("a", ["i3", "i14", "i1"], "9"),
    ("b", ["i15", "i2", None, "i2"], "10"),
    ("c", [], None),
    ("d", ["gone", " i5 "], "0"),
    ("e", ["other"], "3"),
    ("f", None, "1"),
    ("g", ["i7"], "2"),
]
KNOWN = [[3, 14, 1], [2, 2], [], [5], [], [], [7]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prepared")
    write_rows(folder)
    return str(folder)


def table(rows: list[Any] = GIVEN) -> pa.Table:
    columns = {name: [row[at] for row in rows] for at, name in enumerate(("session_id", "items", "user_id"))}
    return pa.table(columns | {"comment": ["not read"] * len(rows)})


def written(folder: Path, content: pa.Table, name: str = "sessions.parquet", **options: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, folder / name, **options)
    return str(folder / name)


def read(place: str, data: str, size: int, *, by_user: bool = False) -> list[dict[str, Any]]:
    return [chunk.to_pydict() for chunk in open_requests(place, data, by_user=by_user).chunks(size)]


def test_items_come_in_the_runs_ids_and_others_are_counted(data: str, tmp_path: Path) -> None:
    place = written(tmp_path, table())
    (chunk,) = read(place, data, 100)
    assert chunk == {"session_id": list("abcdefg"), "history": KNOWN, "user_id": [c.UNKNOWN_USER] * 7}
    told = open_requests(place, data, by_user=False).survey()
    assert (told.sessions, told.items, told.unknown, told.example) == (7, 11, 4, "i15")
    assert (told.empty, told.strangers) == (3, 0)
    assert str(told) == (
        "7 sessions of 11 items; 4 of these are none of the run's and left out, 'i15' first;"
        " sessions left without one: 3"
    )


def test_users_are_read_where_they_are_asked_for(data: str, tmp_path: Path) -> None:
    place = written(tmp_path, table())
    (chunk,) = read(place, data, 100, by_user=True)
    assert chunk["user_id"] == [9, -1, -1, 0, 3, 1, 2]
    told = open_requests(place, data, by_user=True).survey()
    assert told.strangers == 2 and str(told).endswith("; of users whom the run does not know: 2")


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.uint8(), pa.string(), pa.large_string()])
def test_numbers_mean_the_same_as_their_text(kind: pa.DataType, tmp_path: Path) -> None:
    items = pa.table({"item_id": [1, 2, 3], "source_id": ["10", "7", "200"], "title": ["x", "y", "z"]})
    pq.write_table(items.cast(c.ITEMS_SCHEMA), tmp_path / "items.parquet")
    items = pa.ListArray.from_arrays([0, 2, 4], pa.array(["7", "8", "200", "10"]).cast(kind))
    ids = pa.array(["5", "6"]).cast(kind)
    place = written(tmp_path, pa.table({"session_id": ids, "items": items}))
    found = open_requests(place, str(tmp_path), by_user=False)
    (chunk,) = found.chunks(9)
    assert chunk["history"].to_pylist() == [[2], [3, 1]]
    assert chunk["session_id"].combine_chunks().equals(ids)
    assert (found.session_kind, found.item_kind) == (kind, kind)


def test_chunks_are_the_same_however_the_sessions_are_stored(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    rows = [(f"s{i}", [f"i{item}" for item in draw.integers(1, 20, i % 5)], None) for i in range(50)]
    known = [[int(item[1:]) for item in row[1] if int(item[1:]) <= COUNT] for row in rows]
    whole = written(tmp_path, table(rows))
    groups = written(tmp_path, table(rows), "groups.parquet", row_group_size=3)
    for number, (low, high) in enumerate([(0, 1), (1, 18), (18, 50)]):
        written(tmp_path / "files", table(rows[low:high]), f"part-{number}.parquet")
    (tmp_path / "files" / "_SUCCESS").write_text("")
    (tmp_path / "files" / "_started.parquet").write_text("no Parquet")
    expected = [known[start : start + 7] for start in range(0, 50, 7)]
    for place in (whole, groups, str(tmp_path / "files"), (tmp_path / "files").as_uri()):
        for block in (4, 8192):
            monkeypatch.setattr(requests, "_BLOCK_ROWS", block)
            chunks = read(place, data, 7)
            assert [chunk["history"] for chunk in chunks] == expected
            assert [i for chunk in chunks for i in chunk["session_id"]] == [row[0] for row in rows]


def test_no_more_is_read_than_a_chunk_needs(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"s{i}", ["i1"], None) for i in range(1000)]
    place = written(tmp_path, table(rows))  # one row group
    held: list[int] = []
    table_of = requests._Ids.table

    def counted(self: Any, block: pa.RecordBatch) -> pa.Table:
        held.append(len(block))
        return table_of(self, block)

    monkeypatch.setattr(requests, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(requests._Ids, "table", counted)
    chunks = open_requests(place, data, by_user=False).chunks(20)
    for taken in (1, 2, 3):
        assert len(next(chunks)) == 20
        assert set(held) == {16} and sum(held) < taken * 20 + 16


def test_a_row_group_may_be_larger_than_what_is_held(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_BLOCK_ROWS", 1024)
    items = pa.array(np.random.default_rng(0).integers(1, 2**40, 2_000_000))  # which do not compress
    lists = pa.FixedSizeListArray.from_arrays(items, 20)
    content = pa.table({"session_id": np.arange(len(lists)), "items": lists})
    place = written(tmp_path, content, row_group_size=len(lists))
    del items, lists, content
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    held = [pool.bytes_allocated() - before for _ in open_requests(place, data, by_user=False).chunks(512)]
    assert len(held) == 196 and max(held) < Path(place).stat().st_size / 2


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
@pytest.mark.parametrize("compared", [3, 1 << 21])
def test_two_sessions_of_one_id_are_refused(
    kind: pa.DataType, compared: int, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_IDS", compared)  # in eight shares, or at once
    monkeypatch.setattr(requests, "_BLOCK_ROWS", 5)
    ids = [*range(20, 40), 23]
    for kept, is_refused in ((20, False), (21, True)):
        content = pa.table({"session_id": pa.array(ids[:kept]).cast(kind), "items": [["i1"]] * kept})
        found = open_requests(written(tmp_path, content), data, by_user=False)
        if not is_refused:
            assert found.survey().sessions == 20
            continue
        shown = "23" if kind == pa.int64() else "'23'"
        with pytest.raises(InputError, match=rf"2 sessions have the session_id {shown}; give each its own"):
            found.survey()


def without(name: str) -> pa.Table:
    return table().drop_columns([name])


def replaced(name: str, values: Any) -> pa.Table:
    given = table()
    return given.set_column(given.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("items"), r"sessions\.parquet: no column 'items'; it needs one, and has session_id, user_id, comment"),
        (without("session_id"), "no column 'session_id'"),
        (without("user_id"), "no column 'user_id', by which this encoder knows users; it needs one"),
        (table().append_column("items", table()["items"]), "2 columns 'items'"),
        (replaced("session_id", [0.5] * 7), "column 'session_id' holds double; write whole numbers or text"),
        (replaced("items", ["i1 i2"] * 7), "column 'items' holds string; write lists of item ids, oldest first"),
        (replaced("items", [[["i1"]]] * 7), "column 'items' holds list<.*list<.*>; write lists of item ids"),
        (replaced("user_id", [[1]] * 7), "column 'user_id' holds list<.*; write whole numbers or text"),
        (replaced("session_id", ["a", "b", None, *"defg"]), "row 3: no session_id; give every session one"),
        (table([]).cast(table().schema), "no session in it"),
    ],
    ids=["items", "session", "user", "twice", "fractions", "text", "nested", "lists of users", "null", "none"],
)
def test_what_is_wrong_is_told_in_one_line(content: pa.Table, message: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_requests(written(tmp_path, content), data, by_user=True).survey()
    assert "\n" not in str(caught.value)


def test_files_are_told_apart_by_what_is_wrong_with_them(data: str, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "text.parquet").write_text("session_id,items")
    for place, message in (
        (str(tmp_path / "typo.parquet"), r"typo\.parquet: no such file; give --sessions a Parquet file or a folder"),
        (str(tmp_path / "none"), r"none: no \.parquet file in this folder"),
        (str(tmp_path / "text.parquet"), r"text\.parquet: not readable as Parquet: .*; export it again"),
        ("nowhere://bucket/x", "nowhere://bucket/x: .*; give --sessions a Parquet file or a folder"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_requests(place, data, by_user=False)
        assert "\n" not in str(caught.value)
    written(tmp_path / "two", table(), "1.parquet")
    written(tmp_path / "two", replaced("session_id", range(7)), "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: session_id is int64, in .*1\.parquet string; write one type"):
        open_requests(str(tmp_path / "two"), data, by_user=False)


def test_a_damaged_file_is_named(data: str, tmp_path: Path) -> None:
    rows = [(f"session {i}", [f"i{i % 14 + 1}"] * 9, None) for i in range(5000)]
    place = written(tmp_path, table(rows), use_dictionary=False, compression="zstd")
    content = bytearray(Path(place).read_bytes())
    content[1000:3000] = bytes(2000)
    Path(place).write_bytes(content)
    with pytest.raises(InputError, match=r"sessions\.parquet: not readable as Parquet"):
        open_requests(place, data, by_user=False).survey()
