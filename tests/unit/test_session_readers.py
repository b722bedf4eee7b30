"""Readers of session data: Amazon's reviews, Steam's, and tables of sessions; each in every layout it comes in."""

import csv
import gzip
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.config.data import DataConfig
from rayrec.data import columns as c
from rayrec.data.datasets import RawDataset, open_dataset
from rayrec.data.prepare import prepare
from rayrec.data.survey import Rule, Survey, fold_titles, sightings
from rayrec.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("RAYREC_DATA_ROOT", ROOT.parent / "shared" / "data"))
DAY = 86_400


def real(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"{REAL / folder} is not here; set RAYREC_DATA_ROOT")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))


def opened(dataset: str, path: Path, *items: Path) -> RawDataset:
    data = DataConfig.model_validate({"task": "next_item", "dataset": dataset, "sources": ["x"]})
    return open_dataset(data, 0, [path], list(items))


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(*records: dict[str, Any], show: Any = repr) -> str:
    return "".join(show(record) + "\n" for record in records)


def rows(raw: RawDataset) -> list[tuple[Any, ...]]:
    table = pa.concat_tables(raw.interactions())
    assert table.schema == c.RAW_SCHEMA and pickle.loads(pickle.dumps(raw)).name == raw.name  # as Ray does it
    return list(zip(*table.to_pydict().values(), strict=True))


def titles(raw: RawDataset) -> dict[str, str | None]:
    return {row[c.ITEM_ID]: row[c.TITLE] for row in fold_titles(raw.items()).to_pylist()}


def dropped(raw: RawDataset) -> dict[str, int]:
    """Step -> rows that it drops, of the survey."""
    rule = Rule(fold_titles(raw.items())[c.ITEM_ID].combine_chunks())
    steps = Survey((sightings(block, rule) for block in raw.interactions()), reduced=False).steps
    return {step["step"]: step["dropped"] for step in steps[1:] if step["dropped"]}


# Amazon

META: list[dict[str, Any]] = [
    {"asin": "b1", "title": 'It\'s a "soap" &amp; more, 3" x 4\'', "related": {"also_bought": ["b2"]}, "price": 1.5},
    {"asin": "b2", "description": "no title"},
    {"asin": "b3", "title": "Zwölf\n&#39;é&#39;", "salesRank": {"Beauty": 3}},
]
RATINGS = (
    'u1,b1,5.0,1369699200\nu1,b3,2.0,1369699100\nu2,b9,4.0,1355443200\n,b2,4.0,1355443200\n"u,2","b2",1.0,1355443200\n'
)
TITLES = {"b1": 'It\'s a "soap" & more, 3" x 4\'', "b2": None, "b3": "Zwölf 'é'"}


@pytest.mark.parametrize("header", ["", "UserId,ProductId,Rating,Timestamp\n"])
@pytest.mark.parametrize("meta", ["meta_Beauty.json", "meta_Beauty.json.gz"])
@pytest.mark.parametrize("whole", [False, True])
def test_amazon_ratings(whole: bool, meta: str, header: str, tmp_path: Path) -> None:
    ratings = written(tmp_path / "ratings_Beauty.csv", header + RATINGS)
    products = written(tmp_path / meta, lines(*META))
    raw = opened("amazon-beauty", tmp_path) if whole else opened("amazon-beauty", ratings, products)
    assert rows(raw) == [
        ("u1", "b1", 5.0, 1369699200, 0),
        ("u1", "b3", 2.0, 1369699100, 1),
        ("u2", "b9", 4.0, 1355443200, 2),
        (None, "b2", 4.0, 1355443200, 3),
        ("u,2", "b2", 1.0, 1355443200, 4),
    ]
    assert titles(raw) == TITLES and raw.is_timed
    assert dropped(raw) == {"drop missing values": 1, "drop unknown items": 1}
    assert set(raw.sha256) == {"ratings_Beauty.csv", meta}


@pytest.mark.parametrize("name", ["reviews_Beauty.json", "reviews_Beauty.json.gz"])
@pytest.mark.parametrize("show", [json.dumps, repr])
def test_amazon_reviews(show: Any, name: str, tmp_path: Path) -> None:
    """What the paper started from: a rating with its text."""
    review = {"reviewerID": "u1", "asin": "b1", "reviewText": 'It\'s "ok"\nor so', "overall": 5.0, "unixReviewTime": 7}
    late = {"reviewerID": "u1", "asin": "b3", "overall": 2.0, "unixReviewTime": 8, "helpful": [0, 1]}
    written(tmp_path / name, lines(review, late, {"asin": "b1", "overall": 4.0, "unixReviewTime": 9}, show=show))
    written(tmp_path / "meta_Beauty.json.gz", lines(*META))
    raw = opened("amazon-beauty", tmp_path)
    assert rows(raw) == [("u1", "b1", 5.0, 7, 0), ("u1", "b3", 2.0, 8, 1), (None, "b1", 4.0, 9, 2)]
    assert titles(raw) == TITLES and dropped(raw) == {"drop missing values": 1}


def test_amazon_joined_has_an_order_and_no_times(tmp_path: Path) -> None:
    table = {"reviewer_id": ["u", "u", "v"], "asin": ["a", "b", "a"], "pos": [0, 1, 0], "title": ["A", None, "A"]}
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
    raw = opened("amazon-beauty", tmp_path)
    assert rows(raw) == [("u", "a", 1.0, 0, 0), ("u", "b", 1.0, 1, 1), ("v", "a", 1.0, 0, 2)]
    assert titles(raw) == {"a": "A", "b": None} and not raw.is_timed
    for task in ("click", "next_item"):
        data = DataConfig.model_validate({"task": task, "dataset": "amazon-beauty", "sources": ["x"]})
        with pytest.raises(InputError, match=r"an order and no times.*\{leave_one_out: true\}"):
            prepare(data, raw, tmp_path / "data")
        assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ratings_Beauty.csv": RATINGS}, "no meta_*.json*; found ratings_Beauty.csv; check data.sources and"),
        ({}, "no ratings_*.csv or reviews_*.json* or interactions.parquet; found nothing"),
        ({"ratings_A.csv": "", "ratings_B.csv": ""}, "2 files ratings_*.csv; name one in data.sources"),
        ({"ratings_Beauty.csv": "a,b,1\n"}, "ratings_Beauty.csv: 3 columns, expected user, item, rating, timestamp"),
        ({"ratings_Beauty.csv": RATINGS + "u,b1,5\n"}, "ratings_Beauty.csv, line 6: 3 fields where 4 were expected"),
        ({"ratings_Beauty.csv": RATINGS + "u,b1,x,5\n"}, "ratings_Beauty.csv, line 6: rating 'x' is not a number"),
        ({"ratings_Beauty.csv": RATINGS + "u,b1,9,5\n"}, "line 6: rating 9 lies outside data.rating_range [0, 5]"),
        ({"ratings_Beauty.csv": "a,b,c,d\n" + RATINGS + "u,b1,9,5\n"}, "line 7: c 9 lies outside"),
        ({"ratings_Beauty.csv": ""}, "ratings_Beauty.csv: the file is empty"),
        ({"reviews_Beauty.json": lines({"asin": "b"})}, "reviews_Beauty.json: no record has a field 'reviewerID'"),
        (
            {
                "reviews_Beauty.json": "\n"
                + lines({"reviewerID": "u", "asin": "b", "overall": "x", "unixReviewTime": 1})
            },
            "reviews_Beauty.json, line 2: overall 'x' is not a number",
        ),
    ],
)
def test_amazon_told_in_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        written(tmp_path / name, text)
    if len(files) == 1 and "no meta" not in message:
        written(tmp_path / "meta_Beauty.json", lines(*META))
    with pytest.raises(InputError) as caught:
        rows(opened("amazon-beauty", tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@real("amazon-beauty")
def test_amazon_as_it_is_here() -> None:
    raw = opened("amazon-beauty", REAL / "amazon-beauty")
    found = rows(raw)
    table = pq.read_table(REAL / "amazon-beauty" / "interactions.parquet")
    assert [row[:2] for row in found] == list(
        zip(table["reviewer_id"].to_pylist(), table["asin"].to_pylist(), strict=True)
    )
    assert [row[3] for row in found] == table["pos"].to_pylist()
    assert len(titles(raw)) == 12_101 and not dropped(raw)


# Steam

GAMES: list[dict[str, Any]] = [
    {"id": "10", "title": "Heroes &amp; Villains", "genres": ["Action"], "tags": ["FPS"], "price": 9.99},
    {"id": "20", "title": 'It\'s "it"', "genres": ["Indie"], "tags": [], "early_access": False},
    {"id": "30", "title": "No tags", "genres": ["Indie"]},
    {"title": "No id", "genres": ["Indie"], "tags": ["A"]},
]
REVIEWS: list[dict[str, Any]] = [
    {"username": 'Chaos "Syren"\'s', "hours": 0.1, "product_id": "10", "date": "2017-12-17", "text": "it's\nok"},
    {"username": "₮ʜᴇ Wᴀʀᴛᴏɴ 🎬", "product_id": "20", "date": "2017-12-27", "text": 'a "b"', "early_access": True},
    {"username": "x", "product_id": "30", "date": "2013-01-01"},
    {"username": "x", "product_id": "10", "date": None},
    {"product_id": "10", "date": "2013-01-01"},
    {"username": "x", "product_id": "20", "date": "2013-01-01"},
]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
@pytest.mark.parametrize("show", [json.dumps, repr])
@pytest.mark.parametrize("whole", [False, True])
def test_steam(whole: bool, show: Any, ending: str, tmp_path: Path) -> None:
    reviews = written(tmp_path / f"steam_reviews{ending}", lines(*REVIEWS, show=show))
    games = written(tmp_path / f"steam_games{ending}", lines(*GAMES, show=show))
    raw = opened("steam", tmp_path) if whole else opened("steam", reviews, games)
    (first, second, *_), last = rows(raw), rows(raw)[-1]
    assert first == ('Chaos "Syren"\'s', "10", 1.0, 17_517 * DAY, 0)
    assert second == ("₮ʜᴇ Wᴀʀᴛᴏɴ 🎬", "20", 1.0, 17_527 * DAY, 1) and last == ("x", "20", 1.0, 15_706 * DAY, 5)
    assert titles(raw) == {"10": "Heroes & Villains", "20": 'It\'s "it"'}
    assert dropped(raw) == {"drop missing values": 2, "drop unknown items": 1} and raw.is_timed


@pytest.mark.parametrize("date", ["December 17, 2017", "2017-13-01", "2017-12-17 25:00", "17"])
def test_a_date_that_is_none_is_named(date: str, tmp_path: Path) -> None:
    written(tmp_path / "steam_reviews.json", lines(REVIEWS[0], REVIEWS[0] | {"date": date}))
    written(tmp_path / "steam_games.json", lines(*GAMES))
    with pytest.raises(
        InputError, match=rf"steam_reviews.json, line 2: date '{date}' is no time: seconds since 1970, or"
    ):
        rows(opened("steam", tmp_path))


def test_steam_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no steam_reviews.json.gz or steam_reviews.json or interactions.parquet"):
        opened("steam", tmp_path)
    reviews = written(tmp_path / "steam_reviews.json", lines(*REVIEWS))
    with pytest.raises(InputError, match=r"no steam_games.json.gz or steam_games.json; found steam_reviews.json"):
        opened("steam", reviews)
    with pytest.raises(InputError, match=r"steam_reviews.json: no record has a field 'id'"):
        opened("steam", reviews, reviews)


@real("steam-au")
def test_australian_users() -> None:
    raw = opened("steam", REAL / "steam-au")
    found = rows(raw)
    assert len(found) == 59_161 and found[0] == ("76561197970982479", "1250", 1.0, 1_320_451_200, 0)
    assert dropped(raw) == {"drop missing values": 10_091}
    shown = titles(raw)
    assert len(shown) == 3_682 and shown["1250"] == "Killing Floor" and shown["43110"] is None


@real("steam-au")
def test_the_games_as_they_are(tmp_path: Path) -> None:
    """As many games as the paper's own notebook counts are described; one of the lines has no id."""
    reviews = written(tmp_path / "steam_reviews.json", lines(*REVIEWS))
    raw = opened("steam", reviews, REAL / "steam-au" / "steam_games.json.gz")
    known = titles(raw)
    slow: Counter[str] = Counter()
    with gzip.open(REAL / "steam-au" / "steam_games.json.gz", "rt", encoding="utf-8") as file:
        for line in file:
            game = json.loads(line)
            described = not any(isinstance(game[key], float) for key in ("id", "title", "genres", "tags"))  # NaN
            slow[str(game["id"])] += described
    assert set(known) == {game for game, count in slow.items() if count}
    assert len(known) == 28_825 and known["761140"] == "Lost Summoner Kitty"


# Tables of sessions

PRODUCTS = ',global_product_id,name\n0,7,"Chips, ""salted""\n150 g"\n1,8,Milk\n2,9,\n'
SESSIONS = "SessionId,ItemId,Time,Reward\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-09-23 08:43:59.000", 1_600_850_639),
        ("2020-09-23T08:43:59", 1_600_850_639),
        ("2020-09-23T10:43:59.900+02:00", 1_600_850_639),
        ("2020-09-23 08:43:59Z", 1_600_850_639),
        ("2020-09-23", 1_600_819_200),
        ("1600850639", 1_600_850_639),
        ("", None),
        ("NaN", None),
    ],
)
def test_times_of_sessions(text: str, expected: int | None, tmp_path: Path) -> None:
    table = written(tmp_path / "sessions.csv", f"{SESSIONS}1,7,2020-09-23 00:00:00.000,1.0\n1,7,{text},1.0\n")
    if text.isdigit():
        written(table, f"{SESSIONS}1,7,1600850638,1.0\n1,7,{text},1.0\n")
    products = written(tmp_path / "products.csv", PRODUCTS)
    assert rows(opened("sessions", table, products))[1] == ("1", "7", 1.0, expected, 1)


@pytest.mark.parametrize("header", [SESSIONS, "session,item,time,x\n", "session_id,item_id,TIMESTAMP,x\n"])
def test_tables_of_sessions(header: str, tmp_path: Path) -> None:
    body = '"a ""1""",7,2020-09-23 08:43:59.000,1.0\n,7,2020-09-23 08:43:59.000,1.0\nb,10,2020-09-23 08:43:59.500,1.0\n'
    table, products = written(tmp_path / "s.csv", header + body), written(tmp_path / "p.csv", PRODUCTS)
    raw = opened("sessions", table, products)
    assert [row[:4] for row in rows(raw)] == [
        (user, item, 1.0, 1_600_850_639) for user, item in (('a "1"', "7"), (None, "7"), ("b", "10"))
    ]
    assert titles(raw) == {"7": 'Chips, "salted" 150 g', "8": "Milk", "9": None}
    assert dropped(raw) == {"drop missing values": 1, "drop unknown items": 1} and raw.is_timed


def test_sessions_as_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"session": [1, 1], "item": [7, 8], "time": pa.array([10**9, 2 * 10**9], pa.timestamp("ns"))}),
        tmp_path / "s.parquet",
    )
    raw = opened("sessions", tmp_path / "s.parquet", written(tmp_path / "p.csv", PRODUCTS))
    assert rows(raw) == [("1", "7", 1.0, 1, 0), ("1", "8", 1.0, 2, 1)]


def test_sessions_told_in_one_line(tmp_path: Path) -> None:
    products = written(tmp_path / "p.csv", PRODUCTS)
    good = "1,7,2020-09-23 08:43:59,1\n"
    for text, items, message in (
        (SESSIONS + good, [], "s.csv: tells no names of items; set data.item_sources"),
        ("user,item,time\n", [products], "s.csv: no column called session or sessionid; rename one, or read it as"),
        (SESSIONS + good, [tmp_path / "s.csv"], "s.csv: no column called name or itemname or title"),
        (SESSIONS + good + "1,7,23.9.2020,1\n", [products], "s.csv, line 3: Time '23.9.2020' is no time"),
        (SESSIONS + good + "1,7\n", [products], "s.csv, line 3: 2 fields where 4 were expected"),
        (SESSIONS + "1,7,1600850639000,1\n", [products], "s.csv, line 2: Time 1600850639000 is after the year 2100"),
        (SESSIONS, [products], "s.csv: no rows in this file"),
    ):
        table = written(tmp_path / "s.csv", text)
        with pytest.raises(InputError) as caught:
            rows(opened("sessions", table, *items))
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_of_your_own_without_ratings(tmp_path: Path) -> None:
    written(tmp_path / "t.csv", "who,what,when,name\nu,a,5,A\nu,b,6,B\n")
    columns = {"user": "who", "item": "what", "timestamp": "when", "title": "name", "rating": None}
    data = DataConfig.model_validate({"task": "next_item", "dataset": "table", "sources": ["x"], "columns": columns})
    assert rows(open_dataset(data, 0, [tmp_path / "t.csv"], [])) == [("u", "a", 1.0, 5, 0), ("u", "b", 1.0, 6, 1)]


def test_quotes_that_the_csv_module_reads_alike(tmp_path: Path) -> None:
    with (tmp_path / "ratings_X.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a,b", 'c"d', 1.0, 5], ["e\nf", "g", 2.0, 6], ["h", "i", 9.0, 7]])
    written(tmp_path / "meta_X.json", lines(*META))
    raw = opened("amazon-beauty", tmp_path)
    with pytest.raises(InputError, match="line 4: rating 9"):  # a line as an editor counts them
        rows(raw)
