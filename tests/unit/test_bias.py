"""The bias floor against the same formula written with pandas."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rayrec.metrics.pointwise import auc, uauc
from rayrec.models.baselines.bias import BiasFloor

Ints = npt.NDArray[np.int64]


def ratings(rows: int = 600) -> tuple[Ints, Ints, Ints]:
    generator = np.random.default_rng(2)
    return generator.integers(0, 40, rows), generator.integers(1, 70, rows), generator.integers(0, 2, rows)


def by_pandas(train: pd.DataFrame, users: Ints, items: Ints) -> npt.NDArray[np.float64]:
    mean = train.label.mean()

    def smoothed(column: str, ids: Ints) -> npt.NDArray[np.float64]:
        known = train.groupby(column).label.agg(["sum", "count"])
        means = (known["sum"] + 5 * mean) / (known["count"] + 5)
        return means.reindex(ids).fillna(mean).to_numpy()

    return (smoothed("user", users) + smoothed("item", items) - mean).clip(1e-6, 1 - 1e-6)


def test_equals_pandas_also_for_the_unseen() -> None:
    users, items, labels = ratings()
    asked_users, asked_items = np.array([0, 5, 39, 40, 1000, 3]), np.array([1, 0, 69, 70, 2000, 5000])
    found = BiasFloor().fit(users, items, labels).predict(asked_users, asked_items)
    train = pd.DataFrame({"user": users, "item": items, "label": labels})
    assert found == pytest.approx(by_pandas(train, asked_users, asked_items), abs=1e-14)
    assert found[4] == pytest.approx(labels.mean(), abs=1e-15)


def test_by_hand() -> None:
    # m = 2/3; user 0: (2 + 10/3) / 7 = 16/21; item 1: (1 + 10/3) / 7 = 13/21.
    model = BiasFloor().fit([0, 0, 1], [1, 2, 1], [1, 1, 0])
    assert model.predict([0], [1])[0] == pytest.approx(16 / 21 + 13 / 21 - 2 / 3, abs=1e-15)


def test_blocks_in_any_order_are_one_fit() -> None:
    users, items, labels = ratings()
    whole = BiasFloor().fit(users, items, labels)
    blocks = BiasFloor()
    for block in (slice(500, 600), slice(0, 0), slice(0, 120), slice(120, 500)):
        blocks.update(users[block], items[block], labels[block])
    assert np.array_equal(whole.predict(users, items), blocks.predict(users, items))


def test_fit_forgets() -> None:
    model = BiasFloor().fit([9], [9], [1])
    assert model.fit([0, 1], [1, 1], [0, 1]).predict([9], [9])[0] == 0.5


def test_scores_are_probabilities() -> None:
    ids = np.zeros(10_000, dtype=np.int64)
    model = BiasFloor()
    model.update(ids, ids, ids + 1)
    model.update(ids + 1, ids + 1, ids)
    assert model.predict([0, 1], [0, 1]) == pytest.approx([1 - 1e-6, 1e-6], abs=1e-15)


def test_refuses_what_it_cannot_know() -> None:
    with pytest.raises(ValueError, match="no training rows"):
        BiasFloor().predict([0], [0])
    with pytest.raises(ValueError, match="negative"):
        BiasFloor().fit([0], [0], [1]).predict([0], [-1])
    with pytest.raises(ValueError):
        BiasFloor().fit([-1], [0], [1])


def test_equals_a_loop_on_collm_files() -> None:
    """CoLLM's MovieLens-1M: https://github.com/zyang1580/CoLLM, collm-datasets/ml-1m.zip."""
    root = Path(os.environ.get("RAYREC_DATA_ROOT", Path(__file__).resolve().parents[3] / "shared" / "data"))
    paths = [root / "collm-ml-1m" / f"{split}_ood2.pkl" for split in ("train", "valid")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"CoLLM's files are not in {paths[0].parent}; RAYREC_DATA_ROOT names the folder above it")
    train, valid = (pd.read_pickle(path) for path in paths)
    mean = sum(train.label) / len(train)
    likes, rows = Counter(), Counter()
    for user, item, label in zip(train.uid, train.iid, train.label, strict=True):
        for key in (("user", user), ("item", item)):
            likes[key] += label
            rows[key] += 1

    def rate(key: tuple[str, int]) -> float:
        return (likes[key] + 5 * mean) / (rows[key] + 5)

    wanted = [
        min(max(rate(("user", user)) + rate(("item", item)) - mean, 1e-6), 1 - 1e-6)
        for user, item in zip(valid.uid, valid.iid, strict=True)
    ]
    found = BiasFloor().fit(train.uid, train.iid, train.label).predict(valid.uid, valid.iid)
    assert found == pytest.approx(wanted, abs=1e-12)
    assert (auc(valid.label, found), uauc(valid.uid, valid.label, found)[0]) == pytest.approx(
        (roc_auc_score(valid.label, wanted), by_user(valid, wanted)), abs=1e-6
    )


def by_user(rows: pd.DataFrame, scores: list[float]) -> float:
    groups = rows.assign(score=scores).groupby("uid")
    own = [roc_auc_score(mine.label, mine.score) for _, mine in groups if mine.label.nunique() == 2]
    return sum(own) / len(own)
