"""Ten million interactions: memory that blocks bound, and time that grows with the rows alone."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import processes
import psutil
import pyarrow as pa
import pyarrow.csv as pc
import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
USERS, ITEMS = 100_000, 50_000
LIMIT = 4e9  # bytes of all processes of the job together, memory that they share counted once
GROWTH = 12  # times the time, for ten times the rows
PREPARE = """
import sys
from pathlib import Path
from rayrec.preparation import prepare_rows
from rayrec.settings import load
from rayrec.store import Prepared
from rayrec.training.cluster import connected

folder = Path(sys.argv[1])
config = load(None, [
    "data.dataset=table",
    f"data.sources=[{folder}/ratings.csv]",
    f"data.item_sources=[{folder}/titles.csv]",
    "cluster.workers=2",
])
with connected(config.cluster):
    prepare_rows(config, Prepared(str(folder / "data")))
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


def measure(folder: Path, env: dict[str, str], command: list[str]) -> tuple[float, float]:
    """Seconds, and the most bytes that the process and all below it held."""
    peak, over = 0.0, threading.Event()
    with processes.running(command, env, folder / "log") as started:

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.5):
                peak = max(peak, sum(map(held, [started.process, *started.family()])))

        thread = threading.Thread(target=watch)
        thread.start()
        began = time.monotonic()
        started.wait(3000).checked()
        seconds = time.monotonic() - began
        over.set()
        thread.join()
    return seconds, peak


def held(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def test_ten_million_interactions(job_env: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for rows in (1_000_000, 10_000_000):
        folder = tmp_path / str(rows)
        generate(folder, rows)
        found[rows] = measure(folder, job_env, [sys.executable, "-c", PREPARE, str(folder)])
        seconds, peak = found[rows]
        print(f"{rows:,} rows: {seconds:.0f} s, {rows / seconds:,.0f} rows/s, {peak / 1e9:.2f} GB at most")
    (short, _), (long, peak) = found.values()
    assert peak < LIMIT
    assert long < GROWTH * short
