"""Ten million interactions, three million book reviews: memory that blocks bound, time that grows with the rows."""

import json
import sys
from pathlib import Path

import numpy as np
import processes
import pyarrow as pa
import pyarrow.csv as pc
import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
USERS, ITEMS = 100_000, 50_000
REVIEWS, REVIEWERS, BOOKS, LISTED = 3_000_000, 1_000_000, 221_998, 212_404
LIMIT = 4e9  # bytes of all processes of the job together
GROWTH = 12  # times the time, for ten times the rows
PREPARE = """
import sys
from pathlib import Path
from rayrec.preparation import prepare_rows
from rayrec.settings import load
from rayrec.store import Prepared
from rayrec.training.cluster import connected

folder, *settings = sys.argv[1:]
config = load(None, [*settings, "cluster.workers=2"])
with connected(config.cluster):
    prepare_rows(config, Prepared(str(Path(folder) / "data")))
"""


def generate(folder: Path, rows: int) -> None:
    """Ratings of popular and rare items, in no order."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    table = {
        "user_id": draw.integers(0, USERS, rows),
        "item_id": (ITEMS * draw.random(rows) ** 2).astype(np.int64),
        "rating": draw.integers(1, 6, rows),
        "timestamp": draw.integers(1_000_000_000, 1_100_000_000, rows),
    }
    pc.write_csv(pa.table(table), folder / "ratings.csv")
    titles = {"item_id": np.arange(ITEMS), "title": [f"Item {i}" for i in range(ITEMS)]}
    pc.write_csv(pa.table(titles), folder / "titles.csv")


def generate_reviews(folder: Path, rows: int) -> dict[str, int]:
    """Kaggle's two files in the sizes of the real ones, and the rows that each step of preparation should drop."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    words = [" ".join(draw.choice(["good", "bad", '"book"', "a,b", "line\nend", "Wörter"], 130)) for _ in range(1000)]
    texts, missing, unlisted = pa.array(words), 0, 0
    names = ["Id", "Title", "Price", "User_id", "profileName"]
    names += [f"review/{name}" for name in ("helpfulness", "score", "time", "summary", "text")]
    with pc.CSVWriter(folder / "Books_rating.csv", pa.schema([(name, pa.string()) for name in names])) as writer:
        for first in range(0, rows, 50_000):
            count = min(50_000, rows - first)
            book = (BOOKS * draw.random(count) ** 2).astype(np.int64)
            nobody = draw.random(count) < 0.187
            missing += int(nobody.sum())
            unlisted += int((~nobody & (book >= LISTED)).sum())
            user = pa.array(np.char.add("A", draw.integers(0, REVIEWERS, count).astype(str)), mask=nobody)
            score = draw.integers(1, 6, count).astype(np.float64).astype(str)
            time = draw.integers(900_000_000, 1_300_000_000, count).astype(str)
            text = texts.take(pa.array(draw.integers(0, len(texts), count)))
            title, same = np.char.add("Book, volume ", book.astype(str)), pa.repeat("x", count)
            columns = [np.char.add("B", book.astype(str)), title, same, user, same, same, score, time, same, text]
            writer.write_table(pa.table(columns, names=names))
    with (folder / "Books_rating.csv").open("a", encoding="utf-8") as file:
        file.write('"B1","Book, volume 1","x","A1","n","0/')
    listed = {"Title": [f"Book, volume {i}" for i in range(LISTED)], "description": ["d" * 500] * LISTED}
    pc.write_csv(pa.table(listed), folder / "books_data.csv")
    return {"drop rows cut short": 1, "drop missing values": missing, "drop unknown items": unlisted}


def measure(folder: Path, env: dict[str, str], *settings: str) -> tuple[float, float]:
    """Seconds and bytes of a preparation."""
    return processes.measured([sys.executable, "-c", PREPARE, str(folder), *settings], env, folder / "log")


def test_ten_million_interactions(job_env: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for rows in (1_000_000, 10_000_000):
        folder = tmp_path / str(rows)
        generate(folder, rows)
        sources = f"data.sources=[{folder}/ratings.csv]", f"data.item_sources=[{folder}/titles.csv]"
        found[rows] = measure(folder, job_env, "data.dataset=table", *sources)
        seconds, peak = found[rows]
        print(f"{rows:,} rows: {seconds:.0f} s, {rows / seconds:,.0f} rows/s, {peak / 1e9:.2f} GB at most")
    (short, _), (long, peak) = found.values()
    assert peak < LIMIT
    assert long < GROWTH * short


def test_three_million_book_reviews(job_env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "books"
    expected = generate_reviews(folder, REVIEWS)
    seconds, peak = measure(folder, job_env, "data.dataset=amazon-books", f"data.sources=[{folder}]")
    size = (folder / "Books_rating.csv").stat().st_size
    print(f"{REVIEWS:,} reviews, {size / 1e9:.2f} GB: {seconds:.0f} s, {peak / 1e9:.2f} GB at most")
    assert size > 2e9
    assert peak < LIMIT
    steps = json.loads((folder / "data" / "manifest.json").read_text(encoding="utf-8"))["steps"]
    assert steps[0]["rows"] == REVIEWS + 1
    assert {step["step"]: step["dropped"] for step in steps[1:4]} == expected
