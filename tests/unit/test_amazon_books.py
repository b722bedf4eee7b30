"""Amazon Book Reviews as on Kaggle, against a loop over the csv module: what is kept, and what is dropped and why."""

import csv
import io
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayrec.config.data import DataConfig
from rayrec.data import columns as c
from rayrec.data import scan
from rayrec.data.datasets import RawDataset, open_dataset
from rayrec.data.survey import Rule, Survey, fold_titles, sightings
from rayrec.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("RAYREC_DATA_ROOT", ROOT.parent / "shared" / "data")) / "amazon-books-kaggle"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set RAYREC_DATA_ROOT")

HEADER = "Id,Title,Price,User_id,profileName,review/helpfulness,review/score,review/time,review/summary,review/text\n"
BOOKS = "Title,description,authors,image,previewLink,publisher,publishedDate,infoLink,categories,ratingsCount\n"


def opened(ratings: Path, *books: Path) -> RawDataset:
    return open_dataset(DataConfig(dataset="amazon-books", sources=("x",)), 0, [ratings], list(books))


def written(folder: Path, *lines: str, header: str = HEADER, end: str = "\n", name: str = "Books_rating.csv") -> Path:
    path = folder / name
    path.write_bytes((header + "\n".join(lines) + end).encode())
    return path


def line(**values: str) -> str:
    """A row with these values for ``book``, ``title``, ``user``, ``score``, ``time`` or ``text``."""
    row = {"book": "b1", "title": "One", "user": "u", "score": "4.0", "time": "10", "text": "x"} | values
    return '{book},{title},,{user},"A ""B"", C",1/2,{score},{time},ok,{text}'.format(**row)


def table(raw: RawDataset) -> pa.Table:
    return pa.concat_tables(raw.interactions())


def rows(raw: RawDataset) -> list[tuple[Any, ...]]:
    return list(zip(*table(raw).select(c.RAW_SCHEMA.names).to_pydict().values(), strict=True))


def titles(raw: RawDataset) -> dict[str, str]:
    return {row[c.ITEM_ID]: row[c.TITLE] for row in fold_titles(raw.items()).to_pylist()}


def surveyed(raw: RawDataset) -> Survey:
    rule = Rule(fold_titles(raw.items())[c.ITEM_ID].combine_chunks())
    return Survey((sightings(block, rule) for block in raw.interactions()), reduced=False)


def slow(ratings: Path, books: Path | None = None) -> dict[str, int]:
    """Fates of all rows, one by one; ``kept`` comes last."""
    with ratings.open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    names = [name.replace("review_", "review/") for name in header]
    listed = None
    if books:
        with books.open(encoding="utf-8", newline="") as file:
            width, *lines = csv.reader(file)
        listed = {fields[0].strip() for fields in lines if len(fields) == len(width)} - {""}
    by_id = {fields[0]: fields[1].strip() for fields in found if len(fields) > 1}
    fates: Counter[str] = Counter()
    for fields in found:
        row = dict(zip(names, fields, strict=False))
        needed = ("Id", "User_id", "review/score", "review/time")
        if len(fields) < len(names):
            fates["drop rows cut short"] += 1
        elif not all(row[name].strip() for name in needed):
            fates["drop missing values"] += 1
        elif listed is not None and by_id[row["Id"]] not in listed:
            fates["drop unknown items"] += 1
        else:
            fates["kept"] += 1
    return dict(fates)


# The heads of the real files


@real
@pytest.mark.parametrize("books", [(), ("arcturs_books_data.csv",), ("raphael_books_data.csv",)])
@pytest.mark.parametrize(
    ("name", "count", "missing"), [("arcturs_Books_rating.csv", 1424, 313), ("eglantinc_Books_rating.csv", 999, 223)]
)
def test_what_the_heads_keep_and_drop(name: str, count: int, missing: int, books: tuple[str, ...]) -> None:
    lists = [REAL / book for book in books]
    steps = surveyed(opened(REAL / name, *lists)).steps
    assert (steps[0]["rows"], steps[1]["step"], steps[1]["dropped"]) == (count, "drop missing values", missing)
    dropped = {step["step"]: step["dropped"] for step in steps[1:] if step["dropped"]}
    assert {**dropped, "kept": steps[-1]["rows"]} == slow(REAL / name, *lists)


@real
@pytest.mark.parametrize("name", ["arcturs_Books_rating.csv", "eglantinc_Books_rating.csv"])
@pytest.mark.parametrize("block", [1 << 15, 4 << 20])
def test_every_row_of_the_heads(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CSV_BLOCK_BYTES", block)
    with (REAL / name).open(encoding="utf-8", newline="") as file:
        header, *expected = csv.reader(file)
    user, item = header.index("User_id"), header.index("Id")
    score, time = (next(i for i, key in enumerate(header) if key.endswith(end)) for end in ("score", "time"))
    assert rows(opened(REAL / name)) == [
        (fields[user].strip() or None, fields[item], float(fields[score]), int(fields[time]), row)
        for row, fields in enumerate(expected)
    ]


@real
def test_the_lists_of_books() -> None:
    """The list that is cut short has 1,398 whole rows; its last title is not one of them."""
    known = titles(opened(REAL / "arcturs_Books_rating.csv", REAL / "arcturs_books_data.csv"))
    assert len(known) == 123 and known["1882931173"] == "Its Only Art If Its Well Hung!"
    assert len(titles(opened(REAL / "arcturs_Books_rating.csv", REAL / "raphael_books_data.csv"))) == 121


# Its quirks


def test_the_folder_as_kaggle_unpacks_it(tmp_path: Path) -> None:
    ratings = written(
        tmp_path,
        line(),
        line(book="b2", title="Two", user="v", score="2.0", time="11"),
        line(book="b3", title="", user="w"),
    )
    books = written(tmp_path, "One,d,,,,,,,,", ",d,,,,,,,,", header=BOOKS, name="books_data.csv")
    raw = opened(tmp_path)
    assert rows(raw) == [("u", "b1", 4.0, 10, 0), ("v", "b2", 2.0, 11, 1), ("w", "b3", 4.0, 10, 2)]
    assert titles(raw) == {"b1": "One"}
    assert set(raw.sha256) == {"Books_rating.csv", "books_data.csv"}
    again = pickle.loads(pickle.dumps(raw))  # as Ray does it
    assert table(again) == table(raw) and titles(again) == titles(raw)
    assert titles(opened(ratings)) == {"b1": "One", "b2": "Two", "b3": None}
    assert titles(opened(ratings, books)) == titles(raw)


def test_renamed_headers(tmp_path: Path) -> None:
    ratings = written(tmp_path, line(), header=HEADER.replace("review/", "review_"))
    assert rows(opened(ratings)) == [("u", "b1", 4.0, 10, 0)]


def test_quotes_and_line_ends_within_a_review(tmp_path: Path) -> None:
    ratings = written(tmp_path, line(text='"a ""b"",\r\nc\n\nd"'), line(title='"O, ""T"""'))
    assert [row[-1] for row in rows(opened(ratings))] == [0, 1]
    assert titles(opened(ratings)) == {"b1": "One"}


def test_an_unknown_time_is_a_missing_value(tmp_path: Path) -> None:
    raw = opened(written(tmp_path, line(time="-1"), line()))
    assert [row[3] for row in rows(raw)] == [None, 10]
    assert [step.get("dropped") for step in surveyed(raw).steps] == [None, 1, 0]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [300, 4 << 20])
def test_a_file_cut_anywhere(ends: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut after every byte of its last row, characters of several bytes among them: as the csv module sees it."""
    monkeypatch.setattr(scan, "CSV_BLOCK_BYTES", block)
    whole = line(), line(book="b2", title="Zwölf 🎬", text='"ä, ""q""\nend"')
    content = ends.join([HEADER.strip(), *whole]).encode()
    last = len(ends.join([HEADER.strip(), whole[0], ""]).encode())
    path = tmp_path / "Books_rating.csv"
    for length in range(last + 1, len(content) + 1):
        path.write_bytes(content[:length])
        raw = opened(path)
        text = content[last:length].decode("utf-8", "ignore")
        fields = next(csv.reader(io.StringIO(text, newline="")))
        found = rows(raw)
        assert len(found) == 2 and found[0] == ("u", "b1", 4.0, 10, 0)
        steps = {step["step"]: step.get("dropped") for step in surveyed(raw).steps}
        if len(fields) < 10:
            assert found[1] == (None, None, None, None, 1)
            assert table(raw)[c.CUT_SHORT].to_pylist() == [False, True]
            assert steps == {"read": None, "drop rows cut short": 1, "drop missing values": 0, "drop unknown items": 0}
            assert set(titles(raw)) == {"b1"}
        else:
            assert found[1] == ("u", "b2", 4.0, 10, 1)
            assert steps == {"read": None, "drop missing values": 0, "drop unknown items": 0}


def test_a_list_cut_short_loses_its_last_book(tmp_path: Path) -> None:
    ratings = written(tmp_path, line(), line(book="b2", title="Two"))
    books = written(tmp_path, "One,d,,,,,,,,", 'Two,"a des', header=BOOKS, end="", name="books_data.csv")
    assert titles(opened(ratings, books)) == {"b1": "One"}


# What is wrong is one line


def test_a_short_row_before_the_end_is_wrong(tmp_path: Path) -> None:
    for lines, number in (
        ((line(), "b2,Two", line()), 3),
        ((line(), "b2,Two", line(), "b2,Two"), 3),  # the last is cut, the same line before is not
        ((line(), "c,x", 'b,c,,u,,,4.0,10,"\nc,x'), 3),  # what the last row ends with
    ):
        with pytest.raises(InputError) as caught:
            rows(opened(written(tmp_path, *lines, end="")))
        assert str(caught.value).startswith(f"{tmp_path}/Books_rating.csv, line {number}: 2 fields where 10")


def test_a_short_last_row_that_ends_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: 2 fields where 10 were expected"):
        rows(opened(written(tmp_path, line(), "b2,Two")))


def test_a_row_that_is_too_long_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: 11 fields where 10 were expected"):
        rows(opened(written(tmp_path, line(), f"{line()},more", end="")))


def test_a_wrong_score_is_named_by_its_line(tmp_path: Path) -> None:
    ratings = written(tmp_path, line(text='"a\nb"'), line(score="9.0"))
    with pytest.raises(InputError, match=r"Books_rating.csv, line 4: review/score 9 lies outside data.rating_range"):
        rows(opened(ratings))


def test_another_table_is_refused(tmp_path: Path) -> None:
    ratings = written(tmp_path, "1,2", header="User_id,Id\n")
    with pytest.raises(
        InputError, match=r"no column 'review/score', which Kaggle's Books_rating.csv has; read a table"
    ):
        opened(ratings)
    with pytest.raises(InputError, match=r"no column 'Title', which Kaggle's books_data.csv has"):
        opened(written(tmp_path, line()), written(tmp_path, "1", header="name\n", name="b.csv"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Books_rating.csv: no such file"):
        opened(tmp_path)
    written(tmp_path, line())
    with pytest.raises(InputError, match=r"books_data.csv: no such file"):
        opened(tmp_path)
