"""Recommendations for sessions of one's own equal what the run's evaluation says of the same sessions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Pipeline

from rayrec.actors import streamed
from rayrec.config.training import ClusterConfig
from rayrec.errors import InputError
from rayrec.recommendation.job import lists, lists_schema
from rayrec.recommendation.plan import make_plan, open_run
from rayrec.recommendation.requests import open_requests
from rayrec.systems import SystemName

pytestmark = pytest.mark.timeout(600)


def also(*names: str) -> list[Any]:
    """Cases that take too long for every run."""
    return [pytest.param(name, marks=pytest.mark.full) for name in names]


def write_sessions(run: Path, rows: pd.DataFrame, place: Path) -> Path:
    """The histories of some test rows, in the source's ids."""
    data = {name: pd.read_parquet(run / "data" / f"{name}.parquet") for name in ("users", "items")}
    sources, liked = data["items"].set_index("item_id")["source_id"], data["users"]["liked"]
    items = [sources[liked[user][:seen]].tolist() for user, seen in zip(rows["user_id"], rows["seen"], strict=True)]
    columns = {"session_id": np.arange(len(items)), "items": pa.array(items, pa.list_(pa.string()))}
    pq.write_table(pa.table(columns), place)
    return place


def sessions_under_test(run: Pipeline, folder: Path) -> tuple[pd.DataFrame, Path]:
    """The test rows, and a file of their sessions."""
    run.finished.checked()
    test = pd.read_parquet(run.folder / "data" / "test.parquet")
    return test, write_sessions(run.folder, test, folder / "sessions.parquet")


def recommended(run: Pipeline, system: str, place: Path, *, k: int, workers: int, best: int | None = None) -> pa.Table:
    opened = open_run(str(run.folder), [f"cluster.workers={workers}"])
    plan = make_plan(opened, SystemName(system), k, best)
    requests = open_requests(str(place), opened.data.folder, by_user=plan.by_user)
    sessions = requests.survey().sessions
    found = pa.concat_tables(lists(plan, requests, sessions, lists_schema(requests, titles=False)))
    assert found["session_id"].to_pylist() == list(range(sessions))
    return found


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("system", ["sasrec", *also("most_popular", "sknn", "v_sknn", "llmseqsim")])
def test_next_items_are_those_of_the_evaluation(
    system: str, next_items: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, place = sessions_under_test(next_items, tmp_path)
    monkeypatch.setattr("rayrec.recommendation.plan.Plan.chunk", 64)
    table = recommended(next_items, system, place, k=20, workers=2)
    evaluated = pd.read_parquet(next_items.folder / "predictions" / f"{system}.parquet")
    sources = pd.read_parquet(next_items.folder / "data" / "items.parquet").set_index("item_id")["source_id"]
    assert evaluated["user_id"].tolist() == test["user_id"].tolist() and len(table) == len(test) > 128
    for ours, ranked, scores in zip(table.to_pylist(), evaluated["ranked"], evaluated["scores"], strict=True):
        if scores is None:
            assert ours["items"] == sources[ranked].tolist() and ours["scores"] is None
            continue
        assert ours["scores"] == pytest.approx(scores, rel=1e-4, abs=1e-4)
        gaps = -np.diff(scores, prepend=np.inf, append=-np.inf)
        places = zip(ours["items"], sources[ranked], np.minimum(gaps[:-1], gaps[1:]), strict=True)
        assert all(item == theirs or gap < 1e-4 for item, theirs, gap in places)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("system", ["sasrecllm", *also("sasrec", "icl", "tallrec")])
def test_clicks_are_scored_as_in_the_evaluation(system: str, uninterrupted: Pipeline, tmp_path: Path) -> None:
    uninterrupted.finished.checked()
    folder = uninterrupted.folder
    test, items, train = (pd.read_parquet(folder / "data" / f"{name}.parquet") for name in ("test", "items", "train"))
    evaluated = pd.read_parquet(folder / "predictions" / f"{system}.parquet")
    rows = test[test["user_id"].isin(evaluated["user_id"])].assign(score=evaluated["score"].to_numpy())
    rows = rows.iloc[:: max(1, len(rows) // 20)]
    place = write_sessions(folder, rows, tmp_path / "sessions.parquet")
    best = None if system == "sasrec" else len(items)
    table = recommended(uninterrupted, system, place, k=len(items), workers=2, best=best)
    sources, compared = items.set_index("item_id")["source_id"], 0
    rated, sessions = {*sources[train["item_id"]]}, pq.read_table(place)["items"].to_pylist()
    for ours, own, item, score in zip(table.to_pylist(), sessions, rows["item_id"], rows["score"], strict=True):
        assert ours["scores"] == sorted(ours["scores"], reverse=True) and {*ours["items"]} == rated - {*own}
        found = dict(zip(ours["items"], ours["scores"], strict=True))
        if sources[item] in found:  # else it is in the session, or new to training
            assert found[sources[item]] == pytest.approx(score, abs=2e-5)
            compared += 1
    assert compared > 5


@pytest.mark.full
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("system", ["sasrec", "v_sknn"])
def test_one_actor_gives_the_same_bits_as_two(
    system: str, next_items: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, place = sessions_under_test(next_items, tmp_path)
    monkeypatch.setattr("rayrec.recommendation.plan.Plan.chunk", 8)
    one, two = (recommended(next_items, system, place, k=20, workers=workers) for workers in (1, 2))
    assert one.equals(two) and len(one) == len(test)


@pytest.mark.full
def test_a_file_is_written_whole_by_the_job(uninterrupted: Pipeline, tmp_path: Path) -> None:
    uninterrupted.finished.checked()
    test = pd.read_parquet(uninterrupted.folder / "data" / "test.parquet").head(50)
    place = write_sessions(uninterrupted.folder, test, tmp_path / "sessions.parquet")
    out = tmp_path / "out" / "lists.parquet"
    options = ["--run", str(uninterrupted.folder), "--system", "sasrec", "--sessions", str(place), "--out", str(out)]
    command = processes.job("recommend", *options, "--k", "5", "--titles")
    done = processes.run(command, uninterrupted.env, tmp_path / "log").checked()
    assert done.out.splitlines()[-1] == f"lists  50 of 5  ->  {out}"
    table = pq.read_table(out)
    assert table.column_names == ["session_id", "items", "titles", "scores"]
    assert table["session_id"].to_pylist() == list(range(50))
    assert {len(items) for items in table["items"].to_pylist()} == {5}
    first = out.read_bytes()
    processes.run([*command, "--set", "cluster.workers=1"], uninterrupted.env, tmp_path / "again").checked()
    assert out.read_bytes() == first and [path.name for path in out.parent.iterdir()] == ["lists.parquet"]
    refused = processes.run([*command, "--set", "seed=1"], uninterrupted.env, tmp_path / "refused")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1 and "seed: 0 -> 1" in refused.err  # before Ray
    assert out.read_bytes() == first


@pytest.mark.usefixtures("ray_local")
def test_actors_get_one_table_at_a_time_whole_and_in_order() -> None:
    class Counting:
        def __call__(self, table: pa.Table) -> pa.Table:
            if -1 in table["number"].to_pylist():
                raise InputError("a wrong number")
            return table.append_column("held", pa.array([len(table)] * len(table)))

    def numbers(*, wrong: int | None = None, ends: bool = True) -> Iterator[pa.Table]:
        for low in range(0, 120, 5):
            yield pa.table({"number": [-1 if low == wrong else low, *range(low + 1, low + 5)]})
        if not ends:
            raise InputError("damaged at its end")

    def made(**options: Any) -> pa.Table:
        return pa.concat_tables(streamed(lambda: numbers(**options), 24, Counting, (), ClusterConfig(workers=2)))

    assert made().to_pydict() == {"number": list(range(120)), "held": [5] * 120}
    for options, message in (({"wrong": 60}, "a wrong number"), ({"ends": False}, "damaged at its end")):
        with pytest.raises(InputError, match=message):
            made(**options)
