"""The feature floor: what it computes, against slow loops and other libraries; and that no label describes itself."""

import itertools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from rayrec.batch import FEATURES
from rayrec.models.baselines import features, past
from rayrec.models.baselines.features import (
    CANDIDATES,
    Candidate,
    FeatureFloor,
    Seen,
    block_starts,
    describe,
    release_years,
    training_features,
)
from rayrec.models.baselines.past import Asked, Entries, Past

USERS, ITEMS = 60, 40
TITLES = ["", *(f"Film {i} ({1950 + i})" if i % 3 else f"Film {i}" for i in range(1, ITEMS + 1))]
YEARS = release_years(TITLES)
ONE = Candidate(blocks=5, prior=5.0, factors=4, C=0.01)
FEW = (ONE, replace(ONE, C=1.0), replace(ONE, prior=20.0))


def table(rows: int = 1600, *, taste: bool = False, seed: int = 0) -> pa.Table:
    """Rows in the order of time with the likes before each; labels are random, or users like items of their kind."""
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, USERS, rows), generator.integers(1, ITEMS + 1, rows)
    labels = generator.integers(0, 2, rows)
    if taste:
        labels = np.where(generator.random(rows) < 0.9, (users + items) % 2, labels)
    liked: dict[int, list[int]] = defaultdict(list)
    histories = []
    for user, item, label in zip(users.tolist(), items.tolist(), labels.tolist(), strict=True):
        histories.append(list(liked[user]))
        if label:
            liked[user].append(item)
    columns = {"user_id": users.astype(np.int32), "item_id": items.astype(np.int32), "label": labels.astype(np.int8)}
    times = 1_000_000_000 + np.sort(generator.integers(0, rows, rows)) * 5000
    return pa.table({**columns, "timestamp": times, "history": pa.array(histories, pa.list_(pa.int32()))})


def judge(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def relabelled(rows: pa.Table, labels: np.ndarray) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(labels.astype(np.int8)))


def fitted_to(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Positions and features of the training rows, in order."""
    ids, (found,) = training_features(rows, Seen.of(rows), YEARS, ONE.blocks, [ONE.counting])
    order = np.argsort(ids)
    return ids[order], found[order]


# Leaks


def test_the_labels_of_a_block_describe_later_blocks_only() -> None:
    rows = table()
    labels = rows["label"].to_numpy().copy()
    starts = block_starts(rows["timestamp"].to_numpy(), ONE.blocks)
    assert len(starts) == ONE.blocks
    ids, before = fitted_to(rows)
    assert np.array_equal(ids, np.arange(starts[1], len(rows)))
    for block in range(ONE.blocks):
        start, end = [*starts, len(rows)][block : block + 2]
        changed = labels.copy()
        changed[start:end] = 1 - np.random.default_rng(1).permutation(labels[start:end])
        assert (changed != labels).any()
        _, after = fitted_to(relabelled(rows, changed))
        same = (before == after).all(axis=1)
        assert same[ids < end].all()
        assert not same[ids >= end].any()


def test_random_labels_are_not_told_by_their_own_features() -> None:
    rows = table(4000)
    labels = rows["label"].to_numpy()
    ids, found = fitted_to(rows)
    told = describe(whole(rows), rows, ids)  # what in-sample means give: they hold the row's own label
    assert roc_auc_score(labels[ids], told[:, [0, 3]].sum(axis=1)) > 0.58  # the rates of user and item
    for column in range(found.shape[1]):
        spread = 4 / np.sqrt(3 * len(ids))  # over four standard errors of an AUC without meaning
        assert abs(roc_auc_score(labels[ids], found[:, column]) - 0.5) < spread, column


def whole(rows: pa.Table) -> Past:
    (past,) = Seen.of(rows).pasts(len(rows), YEARS, [ONE.counting])
    return past


def test_pasts_that_share_a_likeness_are_those_that_do_not() -> None:
    rows = table()
    seen, ids = Seen.of(rows), np.arange(100)
    settings = [ONE.counting, replace(ONE, prior=20.0).counting]
    shared = [describe(past, rows, ids) for past in seen.pasts(800, YEARS, settings)]
    alone = [describe(past, rows, ids) for setting in settings for past in seen.pasts(800, YEARS, [setting])]
    assert np.array_equal(shared, alone) and not np.array_equal(shared[0], shared[1])


def test_rows_of_one_time_are_in_one_block() -> None:
    assert block_starts(np.array([1, 1, 1, 2, 2, 3, 3, 3]), 4).tolist() == [0, 3, 5]
    assert block_starts(np.arange(10), 5).tolist() == [0, 2, 4, 6, 8]
    assert block_starts(np.zeros(7), 3).tolist() == [0]


def test_only_the_newest_rows_are_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table()
    starts = block_starts(rows["timestamp"].to_numpy(), ONE.blocks)
    newest = len(rows) - starts[-1]
    monkeypatch.setattr(features, "MOST_ROWS", newest + 10)
    ids, found = fitted_to(rows)
    assert len(ids) == len(set(ids.tolist())) == newest + 10
    assert (ids >= starts[-1]).sum() == newest and (ids >= starts[-2]).all()
    again, same = fitted_to(rows)
    assert np.array_equal(ids, again) and np.array_equal(found, same)


# What a mapper reads


def test_training_rows_are_described_as_for_the_regression() -> None:
    rows = table()
    model = FeatureFloor(TITLES, judge, candidates=FEW[:1]).fit(rows, table(seed=1))
    ids, fitted = fitted_to(rows)
    found = model.describe_training(rows)
    assert found.dtype == np.float32 and not found[: ids[0]].any()
    assert found[ids] == pytest.approx(StandardScaler().fit_transform(fitted), abs=1e-5)


def test_other_rows_are_described_by_all_training_rows() -> None:
    rows, asked_of = table(), table(seed=1)
    model = FeatureFloor(TITLES, judge, candidates=FEW).fit(rows, asked_of)
    (best,) = model.chosen
    _, (fitted,) = training_features(rows, Seen.of(rows), YEARS, best.blocks, [best.counting])
    seen = Past(
        *(rows[name].to_numpy() for name in ("user_id", "item_id", "label")),
        YEARS,
        prior=best.prior,
        factors=best.factors,
    )
    wanted = StandardScaler().fit(fitted).transform(describe(seen, asked_of, np.arange(len(asked_of))))
    assert model.describe(asked_of) == pytest.approx(wanted, abs=1e-4)


def test_no_label_describes_its_own_row() -> None:
    """Those of the newest block describe nothing at all, but the candidate is the same whatever they are."""
    rows = table()
    labels = rows["label"].to_numpy().copy()
    start = block_starts(rows["timestamp"].to_numpy(), ONE.blocks)[-1]
    labels[start:] = 1 - labels[start:]
    found = [
        FeatureFloor(TITLES, judge, candidates=[ONE]).fit(each, table(seed=1)).describe_training(each)
        for each in (rows, relabelled(rows, labels))
    ]
    assert np.array_equal(*found)


def test_as_many_numbers_as_a_batch_holds() -> None:
    rows = table(400)
    for candidate in CANDIDATES:
        seen = Seen.of(rows).pasts(len(rows), YEARS, [candidate.counting])[0]
        assert describe(seen, rows, np.arange(3)).shape == (3, FEATURES)


# Features


def test_averages_by_hand() -> None:
    # m = 3/4; user 0: (2 + 15/4) / 8 = 23/32; item 1: (1 + 15/4) / 7 = 19/28; item 2: (2 + 15/4) / 7 = 23/28.
    seen = Past(np.array([0, 0, 0, 1]), np.array([1, 2, 1, 2]), np.array([1, 1, 0, 1]), YEARS, prior=5.0, factors=2)
    found = seen.describe(asked([0, 7], [1, 39], [[2], []]))
    above = (1 - 19 / 28) + (1 - 23 / 28) + (0 - 19 / 28)
    assert found[0, :5] == pytest.approx([23 / 32, np.log(4), above / 8, 19 / 28, np.log(3)], abs=1e-6)
    assert found[1, :6] == pytest.approx([3 / 4, 0, 0, 3 / 4, 0, 0], abs=1e-6)  # nothing is known of either


def asked(users: list[int], items: list[int], liked: list[list[int]]) -> Asked:
    columns = {"user_id": users, "item_id": items, "timestamp": [10**9] * len(users)}
    return Asked.of(pa.table({**columns, "history": pa.array(liked, pa.list_(pa.int32()))}))


def test_similarity_counts_the_users_in_common() -> None:
    generator = np.random.default_rng(3)
    users, items = generator.integers(0, 12, 70), generator.integers(0, 9, 70)  # some pairs come twice
    matrix = sparse.csr_matrix((np.ones(70, dtype=np.float32), (users, items)), (12, 9))
    raters = [{u for u, i in zip(users.tolist(), items.tolist(), strict=True) if i == item} for item in range(9)]
    wanted = np.zeros((9, 9))
    for one in range(9):
        for other in range(9):
            if one != other:
                common = len(raters[one] & raters[other])
                wanted[one, other] = common / (np.sqrt(len(raters[one]) * len(raters[other])) + 0.5)
    assert past._similarity(matrix).toarray() == pytest.approx(wanted, abs=1e-6)


def test_neighbours_against_a_loop() -> None:
    rows = table(600)
    seen = whole(rows)
    users, items, labels = (rows[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "label"))
    mean = labels.mean()

    def rate(ids: np.ndarray, one: int) -> float:
        return float((labels[ids == one].sum() + 5 * mean) / ((ids == one).sum() + 5))

    residual = [
        label - min(max(rate(users, user) + rate(items, item) - mean, 0), 1)
        for user, item, label in zip(users.tolist(), items.tolist(), labels.tolist(), strict=True)
    ]
    appeal = [label - rate(users, user) for user, label in zip(users.tolist(), labels.tolist(), strict=True)]
    similar, target, user = seen._alike.by_raters.toarray(), 5, 3
    rated: dict[int, float] = defaultdict(float)
    for row in np.flatnonzero(users == user):
        rated[int(items[row])] += residual[row]
    near = {item: similar[target, item] for item in rated}
    total = sum(near[item] * rated[item] for item in rated)
    found = seen._neighbours(np.array([user]), np.array([target]))
    assert found[0][0] == pytest.approx(total, abs=1e-5)
    assert found[1][0] == pytest.approx(total / np.sqrt(sum(near.values()) + 1), abs=1e-5)
    cubes = [similar[target, item] ** 3 for item in items]
    wanted = np.dot(cubes, appeal) / (sum(cubes) + 0.05)
    assert seen._near_appeal[target] == pytest.approx(wanted, abs=1e-5)


def test_likes_against_a_loop() -> None:
    seen = whole(table(600))
    similar = seen._alike.by_likers.toarray()
    history = [int(item) for item in np.random.default_rng(0).integers(1, ITEMS, 14)]
    found = [column[1] for column in seen._of_likes(np.array([1, 6]), asked([0, 0], [1, 6], [[], history]).liked)]
    alike = [similar[6, item] for item in history]
    wanted = [np.mean(alike), max(alike), np.mean(alike[-10:]), max(alike[-10:]), np.log(15)]
    assert found[:5] == pytest.approx(wanted, abs=1e-6)
    assert found[7] == pytest.approx(np.mean([seen._decade[item] for item in history]), abs=1e-6)


def test_slopes_are_ridge_regressions() -> None:
    generator = np.random.default_rng(5)
    users, items, z, residual = (
        np.repeat([0, 1], 20),
        np.arange(40),
        generator.normal(0, 3, 40),
        generator.normal(0, 1, 40),
    )
    slopes = past._Slopes(users, items, z, residual, 3)
    for user in (0, 1):
        mine = users == user
        model = Ridge(alpha=10.0).fit(z[mine, None], residual[mine])
        wanted = model.predict(z[:5, None]) - residual[mine].mean()
        assert slopes.at(np.full(5, user), np.arange(5)) == pytest.approx(wanted, abs=1e-12)
    assert (slopes.at(np.full(5, 2), np.arange(5)) == 0).all()  # a user without rows


def test_factors_are_the_best_approximation() -> None:
    matrix = np.random.default_rng(6).normal(0, 1, (12, 9))
    users, items = past._factorised(sparse.csr_matrix(matrix), 3)
    left, scale, right = np.linalg.svd(matrix)
    assert users @ items.T == pytest.approx(left[:, :3] * scale[:3] @ right[:3], abs=1e-8)
    assert [side.shape for side in past._factorised(sparse.csr_matrix(matrix), 16)] == [(12, 16), (9, 16)]


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "NEWEST", 2)
    assert past._newest(np.array([4, 1, 4, 4, 1, 4])).tolist() == [False, True, False, True, True, True]
    kept = Entries.of(np.array([3, 0, 1]), np.array([7, 8, 9, 5]), np.ones(4))
    assert (kept.item.tolist(), kept.age.tolist()) == ([8, 9, 5], [1, 0, 0])
    assert (kept.row.tolist(), kept.counts.tolist()) == ([0, 0, 2], [2, 0, 1])
    assert kept.mean(np.array([1.0, 2.0, 5.0]), empty=-1).tolist() == [1.5, -1, 5]


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Heat (1995)", 1995),
        ("2001: A Space Odyssey (1968) ", 1968),
        ("Seven (a.k.a. Se7en) (1995)", 1995),
        ("Arrival (1896)", 1896),
        ("1984", None),
        ("Blade Runner (1982) (Final Cut)", None),
        ("Nikita (La Femme)", None),
        ("Future (3001)", None),
        ("", None),
    ],
)
def test_release_years(title: str, year: int | None) -> None:
    (found,) = release_years([title])
    assert np.isnan(found) if year is None else found == year


# The model


def test_it_learns_what_averages_cannot() -> None:
    train, test = table(3000, taste=True), table(600, taste=True, seed=1)
    floor = FeatureFloor(TITLES, judge, candidates=[ONE]).fit(train, test)
    scores = floor.predict(test)
    assert ((scores > 0) & (scores < 1)).all()
    assert roc_auc_score(test["label"].to_numpy(), scores) > 0.8
    rates = describe(whole(train), test, np.arange(len(test)))[:, [0, 3]].sum(axis=1)
    assert roc_auc_score(test["label"].to_numpy(), rates) < 0.6


def test_the_best_on_valid_are_kept_and_averaged() -> None:
    train, valid, test = (table(800, taste=True, seed=seed) for seed in range(3))
    alone = [FeatureFloor(TITLES, judge, candidates=[one]).fit(train, valid) for one in FEW]
    worth = [judge(np.array([]), valid["label"].to_numpy(), floor.predict(valid)) for floor in alone]
    order = sorted(range(len(FEW)), key=lambda i: -worth[i])
    assert len(set(worth)) == len(FEW)
    one, two = (FeatureFloor(TITLES, judge, kept=kept, candidates=FEW).fit(train, valid) for kept in (1, 2))
    assert one.chosen == [FEW[order[0]]] and two.chosen == [FEW[i] for i in order[:2]]
    assert np.array_equal(one.predict(test), alone[order[0]].predict(test))
    mean = (alone[order[0]].predict(test) + alone[order[1]].predict(test)) / 2
    assert two.predict(test) == pytest.approx(mean, abs=1e-15)


def test_equal_input_gives_equal_scores_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = table(800), table(200, seed=1)
    first = FeatureFloor(TITLES, judge, candidates=[ONE]).fit(train, test).predict(test)
    assert np.array_equal(first, FeatureFloor(TITLES, judge, candidates=[ONE]).fit(train, test).predict(test))
    monkeypatch.setattr(features, "_CHUNK", 17)
    chunked = FeatureFloor(TITLES, judge, candidates=[ONE]).fit(train, test).predict(test)
    assert chunked == pytest.approx(first, abs=1e-9)


def cross_fitted(rows: pa.Table) -> np.ndarray:
    floor = FeatureFloor(TITLES, judge, candidates=[ONE]).fit(rows, table(100, seed=1))
    return floor.predict_training(rows)


def test_a_training_row_is_told_by_the_other_blocks() -> None:
    """Block by block with the other library's calls."""
    rows = table(800, taste=True)
    labels = rows["label"].to_numpy()
    found = cross_fitted(rows)
    starts = [*block_starts(rows["timestamp"].to_numpy(), ONE.blocks).tolist(), len(rows)]
    ids, features_of = fitted_to(rows)
    assert (found[: starts[1]] == (labels[ids].sum() + 1) / (len(ids) + 2)).all()
    for start, end in itertools.pairwise(starts[1:]):
        own = (ids >= start) & (ids < end)
        scale = StandardScaler().fit(features_of[~own])
        model = LogisticRegression(C=ONE.C, max_iter=1000)
        model.fit(scale.transform(features_of[~own]), labels[ids[~own]])
        wanted = model.predict_proba(scale.transform(features_of[own]))[:, 1]
        assert found[start:end] == pytest.approx(wanted, abs=1e-6)
    assert roc_auc_score(labels[starts[1] :], found[starts[1] :]) > 0.6


def test_random_labels_are_not_told_to_their_own_rows() -> None:
    rows = table(4000)
    labels = rows["label"].to_numpy()
    ids, features_of = fitted_to(rows)
    strong = replace(ONE, C=10.0)
    floor = FeatureFloor(TITLES, judge, candidates=[strong]).fit(rows, table(100, seed=1))
    in_sample = features._regression(strong).fit(features_of, labels[ids]).predict_proba(features_of)[:, 1]
    spread = 4 / np.sqrt(3 * len(ids))  # over four standard errors of an AUC without meaning
    assert roc_auc_score(labels[ids], in_sample) > 0.5 + spread
    assert abs(roc_auc_score(labels[ids], floor.predict_training(rows)[ids]) - 0.5) < spread


def test_the_last_labels_do_not_tell_their_own_rows_at_all() -> None:
    """Nothing is described by the last block, and its own regression is not fitted to it."""
    rows = table(800)
    labels = rows["label"].to_numpy().copy()
    last = block_starts(rows["timestamp"].to_numpy(), ONE.blocks)[-1]
    before = cross_fitted(rows)
    labels[last:] = 1 - labels[last:]
    after = cross_fitted(relabelled(rows, labels))
    assert np.array_equal(before[last:], after[last:])
    assert (before[:last] != after[:last]).all()


def test_a_sample_of_the_other_blocks_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(3000, taste=True)
    whole = cross_fitted(rows)
    monkeypatch.setattr(features, "MOST_ROWS", 1200)
    sampled = cross_fitted(rows)
    assert np.array_equal(sampled, cross_fitted(rows)) and (sampled != whole).all()
    assert np.corrcoef(sampled, whole)[0, 1] > 0.95


def test_one_class_alone_teaches_nothing() -> None:
    """The other blocks hold likes only; and two times make one block that anything describes."""
    rows = relabelled(table(200), np.r_[np.ones(160), np.arange(40) % 2])
    last = block_starts(rows["timestamp"].to_numpy(), ONE.blocks)[-1]
    found = cross_fitted(rows)
    known = last - block_starts(rows["timestamp"].to_numpy(), ONE.blocks)[1]
    assert (found[last:] == (known + 1) / (known + 2)).all() and ((found > 0) & (found < 1)).all()
    at = rows.schema.get_field_index("timestamp")
    two = table(200).set_column(at, "timestamp", pa.array([5] * 100 + [6] * 100))
    found = cross_fitted(two)
    assert set(found[100:]) == {0.5} and len(set(found[:100])) == 1


def test_unseen_users_and_items_are_alike() -> None:
    train = table(800)
    floor = FeatureFloor([""], judge, candidates=[ONE]).fit(train, table(200, seed=1))
    unknown = {"user_id": [USERS, 9999], "item_id": [ITEMS + 1, 9999], "label": [0, 0], "timestamp": [10**9] * 2}
    liked = pa.array([[], [8888]], pa.list_(pa.int32()))
    scores = floor.predict(pa.table({**unknown, "history": pa.array([[], []], pa.list_(pa.int32()))}))
    assert scores[0] == scores[1] and 0 < scores[0] < 1
    assert np.isfinite(floor.predict(pa.table({**unknown, "history": liked}))).all()


def test_refuses_what_it_cannot_know() -> None:
    rows = table(100)
    at = rows.schema.get_field_index("timestamp")
    floor = FeatureFloor(TITLES, judge, candidates=[ONE])
    for predict in (floor.predict, floor.predict_training):
        with pytest.raises(ValueError, match="call fit first"):
            predict(rows)
    with pytest.raises(ValueError, match="id -1 is negative"):
        describe(whole(rows), rows.set_column(1, "item_id", pa.array([-1] * 100)), np.arange(3))
    with pytest.raises(ValueError, match="all 100 training rows have the same time"):
        floor.fit(rows.set_column(at, "timestamp", pa.array([5] * 100)), rows)
    with pytest.raises(ValueError, match="not in the order of time"):
        floor.fit(rows.set_column(at, "timestamp", pa.array(range(100, 0, -1))), rows)
