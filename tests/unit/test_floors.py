"""The systems without a neural model, out of a prepared folder: as their classes say of the same rows."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_info

from rayrec import floors
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.rows import HISTORY
from rayrec.errors import InputError
from rayrec.floors import FLOORS, floor_scores, write_floor
from rayrec.metrics.pointwise import auc, log_loss
from rayrec.models.baselines.bias import BiasFloor
from rayrec.models.baselines.features import FeatureFloor
from rayrec.models.baselines.markov import MarkovChain
from rayrec.preparation import prepare_beside
from rayrec.stages import Task
from rayrec.store import Prepared
from rayrec.systems import SYSTEMS, SystemName

USERS, ITEMS, ROWS = 25, 18, 700
TITLES = [f"Film ({1960 + i})" for i in range(1, ITEMS + 1)]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, pd.DataFrame]:
    """What is prepared in ``tmp_path/data``: split -> its rows, each with its history."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(floors, "_BLOCK_ROWS", 64)
    generator = np.random.default_rng(2)
    users, items = generator.integers(0, USERS, ROWS), generator.integers(1, ITEMS + 1, ROWS)
    frame = pd.DataFrame({c.USER_ID: users, c.ITEM_ID: items, c.LABEL: generator.integers(0, 2, ROWS)})
    frame[c.TIMESTAMP] = np.sort(generator.integers(10**9, 10**9 + 10**7, ROWS))
    liked: dict[int, list[int]] = defaultdict(list)
    histories = []
    for user, item, label in zip(users.tolist(), items.tolist(), frame[c.LABEL], strict=True):
        histories.append(list(liked[user]))
        liked[user] += [item] * label
    frame[HISTORY], frame[c.SEEN] = histories, [len(history) for history in histories]
    stored = frame.assign(**{c.RATING: 0.0, c.IS_WARM: True, c.IS_STRICT_COLD: False})
    splits = dict(zip(c.SPLITS, (slice(0, 500), slice(500, 600), slice(600, ROWS)), strict=True))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, part in splits.items():
        kept = stored[part][c.ROWS_SCHEMA.names]
        pq.write_table(pa.Table.from_pandas(kept, c.ROWS_SCHEMA, preserve_index=False), folder / f"{split}.parquet")
    of_users = {c.USER_ID: range(USERS), c.SOURCE_ID: map(str, range(USERS)), c.LIKED: [liked[u] for u in range(USERS)]}
    of_items = {c.ITEM_ID: range(1, ITEMS + 1), c.SOURCE_ID: map(str, range(ITEMS)), c.TITLE: TITLES}
    for name, columns, schema in (("users", of_users, c.USERS_SCHEMA), ("items", of_items, c.ITEMS_SCHEMA)):
        pq.write_table(
            pa.table({key: list(value) for key, value in columns.items()}, schema), folder / f"{name}.parquet"
        )
    return {split: frame[part].reset_index(drop=True) for split, part in splits.items()}


@pytest.fixture
def ids() -> np.ndarray:
    """A sample of the test rows."""
    return np.arange(3, 100, 2)


def last_liked(frame: pd.DataFrame) -> list[int]:
    return [history[-1] if history else 0 for history in frame[HISTORY]]


def test_every_system_without_a_model_is_a_floor() -> None:
    clicks = {system: spec for system, spec in SYSTEMS.items() if Task.CLICK in spec.tasks}
    assert set(FLOORS) == {system for system, spec in clicks.items() if spec.reads is None and not spec.members}


@pytest.mark.parametrize(("system", "answer"), [(SystemName.YES, 1.0), (SystemName.NO, 0.0)])
def test_one_answer_to_everything(
    rows: dict[str, pd.DataFrame], ids: np.ndarray, tmp_path: Path, system: SystemName, answer: float
) -> None:
    found = floor_scores(system, str(tmp_path / "data"), ids)
    assert found.tolist() == [answer] * len(ids)
    label = rows["test"].loc[ids].label
    assert auc(label, found) == 0.5 and np.isfinite(log_loss(label, found))


def test_bias(rows: dict[str, pd.DataFrame], ids: np.ndarray, tmp_path: Path) -> None:
    train, test = rows["train"], rows["test"].loc[ids]
    wanted = BiasFloor().fit(train.user_id, train.item_id, train.label).predict(test.user_id, test.item_id)
    assert np.array_equal(floor_scores(SystemName.BIAS, str(tmp_path / "data"), ids), wanted)


def test_markov(rows: dict[str, pd.DataFrame], ids: np.ndarray, tmp_path: Path) -> None:
    train, test = rows["train"], rows["test"].loc[ids]
    model = MarkovChain().fit(last_liked(train), train.item_id, train.label)
    wanted = model.predict(last_liked(test), test.item_id)
    assert len(set(wanted)) > ITEMS  # transitions, not only the items' own rates
    assert np.array_equal(floor_scores(SystemName.MARKOV, str(tmp_path / "data"), ids), wanted)


def test_features(rows: dict[str, pd.DataFrame], ids: np.ndarray, tmp_path: Path) -> None:
    tables = {split: pa.Table.from_pandas(frame, preserve_index=False) for split, frame in rows.items()}
    model = FeatureFloor(["", *TITLES], floors.auc_and_uauc).fit(tables["train"], tables["valid"])
    found = floor_scores(SystemName.FEATURES, str(tmp_path / "data"), ids)
    assert found == pytest.approx(model.predict(tables["test"].take(ids)), abs=1e-9)
    assert len(set(found)) == len(ids)


@pytest.mark.usefixtures("rows")
def test_one_thread_fits_them(ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several round depends on their number."""
    threads: list[int] = []

    class Watched(FeatureFloor):
        def fit(self, *given: Any) -> FeatureFloor:
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit(*given)

    monkeypatch.setattr(floors, "FeatureFloor", Watched)
    floor_scores(SystemName.FEATURES, str(tmp_path / "data"), ids)
    assert set(threads) == {1}


def shuffled(folder: Path) -> np.ndarray:
    """Writes the training rows in another order, as a dataset that comes split may have them, and returns it."""
    order = np.random.default_rng(4).permutation(500)
    path = folder / "train.parquet"
    pq.write_table(pq.read_table(path).take(order), path)
    return order


def test_the_feature_floor_takes_training_rows_in_any_order(
    rows: dict[str, pd.DataFrame], ids: np.ndarray, tmp_path: Path
) -> None:
    before = floor_scores(SystemName.FEATURES, str(tmp_path / "data"), ids)
    shuffled(tmp_path / "data")
    assert floor_scores(SystemName.FEATURES, str(tmp_path / "data"), ids) == pytest.approx(before, abs=1e-9)


def written(tmp_path: Path) -> dict[str, pa.ChunkedArray]:
    """The logits beside the rows of each split."""
    (tmp_path / "scratch").mkdir()
    write_floor(str(tmp_path / "data"), tmp_path / "scratch")
    return {split: pq.read_table(tmp_path / "data" / "floor" / f"{split}.parquet")[c.FLOOR] for split in c.SPLITS}


def test_logits_beside_the_rows_are_the_floors(rows: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    """Those of training rows are told in time, and stand in the order of the rows whatever that is."""
    order = shuffled(tmp_path / "data")
    tables = {split: pa.Table.from_pandas(frame, preserve_index=False) for split, frame in rows.items()}
    model = FeatureFloor(["", *TITLES], floors.auc_and_uauc).fit(tables["train"], tables["valid"])
    found = written(tmp_path)
    wanted = {split: model.predict(tables[split]) for split in ("valid", "test")}
    wanted["train"] = model.predict_training(tables["train"])[order]
    for split, score in wanted.items():
        probability = np.clip(score, 1e-6, 1 - 1e-6)  # never infinitely sure
        assert found[split].to_numpy() == pytest.approx(np.log(probability / (1 - probability)), abs=1e-6)
        assert len(set(found[split].to_pylist())) > 0.8 * len(probability) - 100  # but for two blocks' constants
    mark = json.loads((tmp_path / "data" / "floor" / "floor.json").read_text())
    assert mark["chosen"] == [asdict(model.chosen[0])] and set(mark["files"]) == {
        f"{split}.parquet" for split in c.SPLITS
    }


def test_features_beside_the_rows_are_the_floors(rows: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    """Those of training rows are told in time, and stand in the order of the rows whatever that is."""
    order = shuffled(tmp_path / "data")
    tables = {split: pa.Table.from_pandas(frame, preserve_index=False) for split, frame in rows.items()}
    model = FeatureFloor(["", *TITLES], floors.auc_and_uauc).fit(tables["train"], tables["valid"])
    prepare_beside(Config(), Prepared(str(tmp_path / "data")), {Beside.FEATURES})
    folder = tmp_path / "data" / "features"
    for split in c.SPLITS:
        told = model.describe_training(tables[split])[order] if split == "train" else model.describe(tables[split])
        table = pq.read_table(folder / f"{split}.parquet")
        assert table.schema == c.FEATURES_SCHEMA
        assert np.stack(table[c.FEATURES].to_numpy()) == pytest.approx(told, abs=1e-6)
    mark = json.loads((folder / "features.json").read_text())
    assert mark["chosen"] == asdict(model.chosen[0])
    assert set(mark["files"]) == {f"{split}.parquet" for split in c.SPLITS}


def test_rows_without_a_floor_are_named(rows: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index(c.TIMESTAMP)
    pq.write_table(table.set_column(at, c.TIMESTAMP, pa.array([5] * len(table))), path)
    with pytest.raises(
        InputError, match=r"offset: no feature floor of the rows in .*: all 500 training rows have the same"
    ):
        written(tmp_path)
    with pytest.raises(InputError, match=r"mapper\.features: no feature floor of the rows in .*; leave it out"):
        prepare_beside(Config(), Prepared(str(tmp_path / "data")), {Beside.FEATURES})
    assert not {"floor", "features"} & {path.name for path in (tmp_path / "data").iterdir()}


def test_a_candidate_is_judged_by_both() -> None:
    # Over all rows 2 of 3 pairs are in order, of user 0 the only one; user 1 has one class.
    users, labels, scores = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 1]), np.array([0.6, 0.5, 0.4, 0.9])
    assert floors.auc_and_uauc(users, labels, scores) == pytest.approx(2 / 3 + 1)
    assert floors.auc_and_uauc(np.arange(4), labels, scores) == pytest.approx(2 / 3)  # no user with both classes
