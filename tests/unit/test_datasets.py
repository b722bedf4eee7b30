import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.config.data import ColumnMap, DataConfig
from rayrec.data import scan, survey
from rayrec.data.columns import RAW_ITEM_SCHEMA, RAW_SCHEMA
from rayrec.data.datasets import RawDataset, open_dataset
from rayrec.data.survey import fold_titles
from rayrec.errors import InputError

HEADER = "user_id,item_id,rating,timestamp,title\n"
U_ITEM = "1|Toy Story (1995)|01-Jan-1995||url|0\n2|Misérables, Les (1995)|01-Jan-1995||url|1\n"
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def rows(raw: RawDataset) -> list[tuple[Any, ...]]:
    table = pa.concat_tables(raw.interactions())
    assert table.schema == RAW_SCHEMA
    return list(zip(*table.to_pydict().values(), strict=True))


def sent(raw: RawDataset) -> RawDataset:
    """What another process gets, since Ray pickles readers; the bytes are this process's own, so safe to load."""
    again = pickle.loads(pickle.dumps(raw))
    assert isinstance(again, RawDataset)
    return again


def titles(raw: RawDataset) -> dict[str, str]:
    table = pa.concat_tables(raw.items())
    assert table.schema == RAW_ITEM_SCHEMA
    return dict(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True))


def movielens(folder: Path, dataset: str = "ml-100k") -> RawDataset:
    return open_dataset(DataConfig.model_validate({"dataset": dataset}), 0, [folder], [])


def table(path: Path, items: Sequence[Path] = (), **columns: Any) -> RawDataset:
    data = DataConfig(dataset="table", sources=("x",), columns=ColumnMap(**{"title": "title", **columns}))
    return open_dataset(data, 0, [path], items)


# Layouts


def test_ml_100k(tmp_path: Path) -> None:
    write(tmp_path / "u.data", "1\t2\t5\t100\n2\t1\t3\t99\n")
    write(tmp_path / "u.item", U_ITEM, "latin-1")
    raw = movielens(tmp_path)
    assert rows(raw) == [("1", "2", 5.0, 100, 0), ("2", "1", 3.0, 99, 1)]
    assert titles(raw) == {"1": "Toy Story (1995)", "2": "Misérables, Les (1995)"}
    assert set(raw.sha256) == {"u.data", "u.item"}
    again = sent(raw)
    assert rows(again) == rows(raw) and titles(again) == titles(raw)


def test_ml_1m_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    write(folder / "ratings.dat", "1::10::5::978300760\r\n1::20::1::978300761\r\n")
    write(folder / "movies.dat", "10::Matrix, The (1999)::Action\n20::Sun: Là (1998)::Drama\n", "latin-1")
    raw = movielens(tmp_path, "ml-1m")
    assert rows(raw) == [("1", "10", 5.0, 978300760, 0), ("1", "20", 1.0, 978300761, 1)]
    assert titles(raw) == {"10": "Matrix, The (1999)", "20": "Sun: Là (1998)"}


def test_recbole_shows_the_release_year(tmp_path: Path) -> None:
    write(tmp_path / "ml-100k.inter", "\ufeff" + INTER + "1\t2\t5\t100\n\n2\t1\t3.0\t99.0\n")
    films = (
        "1\tUsual Suspects, The\t1995\tCrime\n2\tunkonwn\tunkonwn\tunknown\n3\tHeat (1995)\t1996\tCrime\n4\t\t1990\t\n"
    )
    write(tmp_path / "ml-100k.item", ITEM + films)
    raw = movielens(tmp_path)
    assert rows(raw) == [("1", "2", 5.0, 100, 0), ("2", "1", 3.0, 99, 1)]
    assert titles(raw) == {"1": "Usual Suspects, The (1995)", "2": "unkonwn", "3": "Heat (1995)", "4": None}


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_text_table(tmp_path: Path, suffix: str, separator: str) -> None:
    names = ["user", "item", "rating", "timestamp", "title"]
    lines = [["u1", "007", "4.5", "10", 'A, "B"\nC'], ["NA", "8", "5", "11", "None"]]
    path = tmp_path / f"rows.{suffix}"
    pd.DataFrame(lines, columns=names).to_csv(path, sep=separator, index=False, encoding="utf-8-sig")
    raw = table(path, user="user", item="item")
    assert rows(raw) == [("u1", "007", 4.5, 10, 0), ("NA", "8", 5.0, 11, 1)]  # "NA" is an id like any other
    assert titles(raw) == {"007": 'A, "B"\nC', "8": "None"}


def test_parquet_table_with_its_own_types_and_items(tmp_path: Path) -> None:
    times = pd.to_datetime([10, 11, 12], unit="s")
    frame = pd.DataFrame({"u": [1.0, 2.0, None], "i": [7, 8, 7], "r": np.array([4, 5, 1], np.float32), "t": times})
    frame["i"] = frame["i"].astype("category")
    frame.to_parquet(tmp_path / "rows.parquet")
    items = write(tmp_path / "items.csv", "item_id,title\n7,Seven\n8,Eight\n")
    raw = table(tmp_path / "rows.parquet", [items], user="u", item="i", rating="r", timestamp="t")
    assert rows(raw) == [("1", "7", 4.0, 10, 0), ("2", "8", 5.0, 11, 1), (None, "7", 1.0, 12, 2)]
    assert titles(raw) == {"7": "Seven", "8": "Eight"}
    assert set(raw.sha256) == {"rows.parquet", "items.csv"}


def test_blank_and_null_are_missing(tmp_path: Path) -> None:
    body = " ,1,4,10,a\nu, ,4,10,a\nu,1,,10,a\nu,1,nan,10,a\nu,1,NULL,10,a\nu,1,4,,a\n"
    got = rows(table(write(tmp_path / "t.csv", HEADER + body)))
    assert got == [
        (None, "1", 4.0, 10, 0),
        ("u", None, 4.0, 10, 1),
        ("u", "1", None, 10, 2),
        ("u", "1", None, 10, 3),
        ("u", "1", None, 10, 4),
        ("u", "1", 4.0, None, 5),
    ]


def test_several_files_count_rows_through(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.csv", HEADER + f"u,{i},4,10,t{i}\n") for i in range(2)]
    data = DataConfig(dataset="table", sources=("x",), columns=ColumnMap(title="title"))
    assert [row[-1] for row in rows(open_dataset(data, 0, paths, []))] == [0, 1]


def test_blocks_are_bounded_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.inter", INTER + "".join(f"{i % 7}\t{i % 5}\t{i % 5 + 1}\t{i}\n" for i in range(100)))
    write(tmp_path / "a.item", ITEM + "".join(f"{i}\tFilm {i}\t1990\t\n" for i in range(5)))
    raw = movielens(tmp_path)
    whole = rows(raw)
    monkeypatch.setattr(scan, "BLOCK_ROWS", 1)
    assert max(len(block) for block in raw.interactions()) == 1
    assert rows(raw) == whole


def test_needs_neither_torch_nor_ray() -> None:
    code = "import sys, rayrec.data.datasets; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Titles


def test_titles_fold_to_one_line_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_FOLD_ROWS", 2)  # folds many times
    pairs = [
        ("a", " "),
        ("b", "B\r\nB\tB\x00"),
        ("a", "A\u2028A"),
        ("c", None),
        (None, "x"),
        ("b", "other"),
        ("a", "z"),
    ]
    blocks = [pa.table([[item], [title]], schema=RAW_ITEM_SCHEMA) for item, title in pairs]
    got = fold_titles(blocks).to_pylist()
    assert got == [
        {"item_id": "a", "title": "A A"},
        {"item_id": "b", "title": "B B B"},
        {"item_id": "c", "title": None},
    ]


# Synthetic


def test_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(dataset="synthetic")
    raw = open_dataset(data, 3, [], [])
    frame = pa.concat_tables(raw.interactions()).to_pandas()
    assert len(frame) == data.synthetic.rows
    assert frame["row"].tolist() == list(range(len(frame)))
    assert set(frame["rating"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert (frame["timestamp"].diff().dropna() > 0).all()
    assert set(frame["item_id"]) == set(titles(raw)) and titles(raw)["i12"].startswith("Film 12 (")
    assert frame["user_id"].nunique() == data.synthetic.users
    monkeypatch.setattr(scan, "BLOCK_ROWS", 333)
    assert rows(sent(raw)) == list(frame.itertuples(index=False, name=None))
    assert rows(open_dataset(data, 4, [], [])) != rows(raw)


def test_synthetic_can_be_learned() -> None:
    """Low rank: a few factors of the train half explain the other half better than the means of users and items."""
    frame = pa.concat_tables(open_dataset(DataConfig(dataset="synthetic"), 0, [], []).interactions()).to_pandas()
    half = len(frame) // 2
    wide = frame[:half].pivot_table(index="user_id", columns="item_id", values="rating")
    means = wide.sub(wide.mean(axis=1), axis=0).mean(axis=0).to_numpy() + wide.mean(axis=1).to_numpy()[:, None]
    left, scale, right = np.linalg.svd(np.nan_to_num(wide.to_numpy() - means))
    low = pd.DataFrame(means + (left[:, :3] * scale[:3]) @ right[:3], wide.index, wide.columns)
    base = pd.DataFrame(means, wide.index, wide.columns)
    late = frame[half:][frame["user_id"][half:].isin(wide.index)]
    errors = {
        name: np.mean([(row.rating - model.at[row.user_id, row.item_id]) ** 2 for row in late.itertuples()])
        for name, model in (("low", low), ("base", base))
    }
    assert errors["low"] < 0.8 * errors["base"] < 0.8 * late["rating"].var()


# Errors: each one line, naming place and mend


def ml_100k(tmp_path: Path, ratings: str | bytes = "1\t1\t5\t100\n", films: str = U_ITEM) -> RawDataset:
    write(tmp_path / "u.data", ratings)
    write(tmp_path / "u.item", films, "latin-1")
    return movielens(tmp_path)


def recbole(tmp_path: Path, ratings: str | bytes, films: str | bytes = ITEM + "1\tHeat\t1995\tCrime\n") -> RawDataset:
    write(tmp_path / "a.inter", ratings)
    write(tmp_path / "a.item", films)
    return movielens(tmp_path)


def csv(tmp_path: Path, body: str | bytes, header: str = HEADER, name: str = "t.csv", **columns: Any) -> RawDataset:
    content = header.encode() + (body if isinstance(body, bytes) else body.encode())
    return table(write(tmp_path / name, content), **columns)


def parquet(tmp_path: Path, **values: Any) -> RawDataset:
    row = {
        "user_id": ["a", "b"],
        "item_id": [1, 2],
        "rating": [4, 5],
        "timestamp": [1, 2],
        "title": ["x", "y"],
        **values,
    }
    pq.write_table(pa.table(row), tmp_path / "t.parquet")
    return table(tmp_path / "t.parquet")


GOOD = "u,1,4,10,a\n"
ERRORS: dict[str, tuple[Callable[[Path], RawDataset], str]] = {
    "no folder": (lambda p: movielens(p / "x"), "/x: no such folder; data.sources must lead to the folder of ml-100k"),
    "no layout": (lambda p: (write(p / "readme", "x"), movielens(p))[1], "expected u.data and u.item, or ratings.dat"),
    "no layout shows what is there": (lambda p: (write(p / "readme", "x"), movielens(p))[1], "found readme"),
    "no titles file": (lambda p: (write(p / "u.data", "1\t1\t5\t1\n"), movielens(p))[1], "u.item: no such file"),
    "two layouts": (lambda p: (write(p / "b.inter", INTER), recbole(p, INTER))[1], "more than one *.inter or *.item"),
    "empty file": (lambda p: ml_100k(p, ""), "u.data: the file is empty"),
    "only a header": (lambda p: csv(p, ""), "t.csv: no rows in this file"),
    "only blank lines": (lambda p: ml_100k(p, "\n\n"), "u.data: no rows in this file"),
    "only a header in titles": (lambda p: recbole(p, INTER + "1\t1\t5\t1\n", ITEM), "a.item: no rows"),
    "no table file": (lambda p: table(p / "t.csv"), "t.csv: no such file"),
    "empty table": (lambda p: csv(p, "", ""), "t.csv: the file is empty"),
    "unknown suffix": (lambda p: csv(p, GOOD, name="t.xlsx"), "unknown suffix '.xlsx'; use a .csv, .tsv"),
    "no titles named": (lambda p: csv(p, GOOD, title=None), "set data.columns.title"),
    "missing column": (lambda p: csv(p, GOOD, rating="ratings"), "no column 'ratings'; did you mean 'rating'?"),
    "missing column lists": (lambda p: csv(p, GOOD, user="q"), "found: user_id, item_id, rating, timestamp, title"),
    "missing recbole column": (lambda p: recbole(p, INTER.replace("rating", "stars")), "no column 'rating'"),
    "missing title column": (
        lambda p: recbole(p, INTER + "1\t1\t5\t1\n", "item_id:token\n1\n"),
        "no column 'movie_title'",
    ),
    "missing parquet column": (lambda p: table(write_parquet(p, {"user_id": ["a"]})), "no column 'item_id'"),
    "column twice": (
        lambda p: csv(p, "u,1,4,4,10,a\n", "user_id,item_id,rating,rating,timestamp,title\n"),
        "occurs 2 times",
    ),
    "encoding of a table": (
        lambda p: csv(p, GOOD.encode() + "u,1,4,10,é\n".encode("latin-1")),
        "t.csv, line 3: byte 0xe9 at position 59 of the file is not UTF-8",
    ),
    "encoding of recbole": (
        lambda p: recbole(p, INTER + "1\t1\t5\t1\n", ITEM.encode() + b"1\tL\xe9on\t1994\tCrime\n"),
        "a.item, line 2: byte 0xe9 at position 74 of the file is not UTF-8",
    ),
    "utf-16": (lambda p: csv(p, (HEADER + GOOD).encode("utf-16"), ""), "the encoding expected here"),
    "text rating": (lambda p: csv(p, GOOD + "u,1,good,10,a\n"), "t.csv, line 3: rating 'good' is not a number"),
    "rating with a comma": (lambda p: ml_100k(p, "1\t1\t4,5\t1\n"), "u.data, line 1: rating '4,5' is not a number"),
    "high rating": (
        lambda p: ml_100k(p, "1\t1\t5\t1\n\n1\t1\t6\t1\n"),
        "line 3: rating 6 lies outside data.rating_range [0, 5]",
    ),
    "low rating": (lambda p: csv(p, "u,1,-0.5,10,a\n"), "line 2: rating -0.5 lies outside"),
    "infinite rating": (lambda p: csv(p, "u,1,inf,10,a\n"), "line 2: rating inf lies outside"),
    "negative time": (lambda p: csv(p, "u,1,4,-1,a\n"), "line 2: timestamp -1 is before 1970"),
    "milliseconds": (lambda p: csv(p, "u,1,4,978300760000,a\n"), "timestamp 978300760000 is after the year 2100"),
    "milliseconds mended": (lambda p: csv(p, "u,1,4,978300760000,a\n"), "divide milliseconds by 1000"),
    "fraction of a second": (lambda p: csv(p, "u,1,4,10.5,a\n"), "timestamp 10.5 is not a whole number of seconds"),
    "time in words": (lambda p: csv(p, "u,1,4,2001-01-01,a\n"), "timestamp '2001-01-01' is not a number"),
    "line after a quoted line end": (lambda p: csv(p, 'u,1,4,10,"a\nb"\nu,1,x,10,a\n'), "t.csv, line 4: rating 'x'"),
    "field too few": (lambda p: csv(p, GOOD + "u,1,4,10\n"), "t.csv, line 3: 4 fields where 5 were expected"),
    "field too many": (lambda p: ml_100k(p, "1\t1\t5\t1\n1\t1\t5\t1\t9\n"), "u.data, line 2: 5 fields where 4"),
    "too few everywhere": (lambda p: ml_100k(p, "1\t1\t5\n"), "u.data, line 1: 3 fields where 4 were expected"),
    "titles too short": (lambda p: ml_100k(p, films=U_ITEM + "3|x\n"), "u.item, line 3: 2 fields where 6"),
    "recbole too short": (lambda p: recbole(p, INTER + "1\t1\t5\n"), "a.inter, line 2: 3 fields where 4"),
    "parquet row": (lambda p: parquet(p, rating=[4, 9]), "t.parquet, row 2: rating 9 lies outside"),
    "parquet type": (lambda p: parquet(p, rating=[[4], [5]]), "column 'rating' holds list"),
    "parquet nanoseconds": (lambda p: parquet(p, timestamp=[10, 2**60]), "row 2: timestamp 1152921504606846976 is too"),
    "parquet unsigned": (
        lambda p: parquet(p, timestamp=pa.array([10, 2**63 + 9], pa.uint64())),
        "row 2: timestamp 9223372036854775817 is too large to be held exactly",
    ),
    "parquet far below zero": (
        lambda p: parquet(p, timestamp=[-(2**60), 10]),
        "row 1: timestamp -1152921504606846976 is too",
    ),
    "no parquet": (lambda p: table(write(p / "t.parquet", "x")), "not readable as Parquet"),
}


def write_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_input_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = ERRORS[case]
    with pytest.raises(InputError) as caught:
        raw = make(tmp_path)
        rows(raw)
        titles(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_wrong_row_is_named_in_a_later_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BLOCK_ROWS", 3)
    lines = [f"1\t{i}\t4\t{i}" for i in range(10)]
    raw = ml_100k(tmp_path, "\n".join([*lines, "1\t2\tx\t3"]))
    with pytest.raises(InputError, match="line 11: rating 'x'"):
        rows(raw)
