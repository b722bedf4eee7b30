"""The data order: pure, fair to every row, the same for any number of workers, and little padding."""

from collections import Counter
from itertools import groupby, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from groups import by_any_group

from rayrec.config import Config
from rayrec.data.plan import Plan, sample_rows, scoring_batches, worker_slice
from rayrec.training import evaluate

USERS = np.random.default_rng(8).integers(0, 30, 400).astype(np.int32)


def lengths(rows: int, mean: float = 174, sd: float = 25) -> np.ndarray:
    return np.random.default_rng(1).normal(mean, sd, rows).round().clip(1).astype(np.int32)


def plan(rows: int = 1000, batch: int = 16, steps: int = 30, seed: int = 3) -> Plan:
    return Plan(lengths(rows), batch, steps, seed)


# Purity


def test_the_same_seed_and_epoch_give_the_same_rows() -> None:
    for epoch in (0, 7):
        assert np.array_equal(plan().epoch(epoch), plan().epoch(epoch))
    first = plan()
    first.epoch(4)  # what was asked before does not matter
    assert np.array_equal(first.epoch(2), plan().epoch(2))


@pytest.mark.parametrize("other", [plan(seed=4).epoch(0), plan().epoch(1)], ids=["seed", "epoch"])
def test_another_seed_or_epoch_gives_another_order(other: np.ndarray) -> None:
    assert (plan().epoch(0) != other).mean() > 0.9


def test_two_passes_over_all_the_data_differ() -> None:
    whole = plan(rows=480, steps=30)  # an epoch is a pass
    first, second = whole.epoch(0), whole.epoch(1)
    assert sorted(first.flat) == sorted(second.flat) == list(range(480))
    together = {frozenset(batch) for batch in first.tolist()} & {frozenset(batch) for batch in second.tolist()}
    assert not together  # not even the same rows met again


# Fairness


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    [(1000, 16, 30), (1000, 16, 62), (1000, 16, 200), (7, 16, 3), (480, 16, 30), (1, 4, 2)],
)
def test_no_row_comes_again_before_every_row_came(rows: int, batch: int, steps: int) -> None:
    order, seen = plan(rows, batch, steps), Counter[int]()
    for epoch in range(8):
        found = order.epoch(epoch)
        assert found.shape == (steps, batch)
        seen.update(found.ravel().tolist())
        counts = [seen[row] for row in range(rows)]
        assert max(counts) - min(counts) <= 1
    assert sum(seen.values()) == 8 * steps * batch
    assert set(seen) <= set(range(rows))


def test_a_row_comes_once_in_every_pass() -> None:
    order = plan(rows=48, batch=16, steps=3)
    for epoch in range(5):
        assert sorted(order.epoch(epoch).flat) == list(range(48))


# Steps and workers


def test_steps_count_through_the_epochs() -> None:
    order = plan(steps=5)
    by_epoch = np.concatenate([order.epoch(epoch) for epoch in range(3)])
    for step in (14, 0, 7, 6, 5, 13):  # any order: a resumed stage begins anywhere
        assert np.array_equal(order.step(step), by_epoch[step])


def test_two_plans_do_not_mix() -> None:
    one, other = plan(seed=1), plan(seed=2)
    for step in range(4):
        assert np.array_equal(one.step(step), plan(seed=1).epoch(0)[step])
        assert np.array_equal(other.step(step), plan(seed=2).epoch(0)[step])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_same_global_batch(world: int) -> None:
    order = plan()
    for step in range(30):
        shares = [worker_slice(order.step(step), rank, world) for rank in range(world)]
        assert {len(share) for share in shares} == {16 // world}
        assert sorted(np.concatenate(shares)) == sorted(order.step(step))


# Sharing


SHARED = np.random.default_rng(2).integers(0, 300, 1000)


def sharing(most: int) -> Plan:
    return Plan(lengths(1000), 16, 62, 3, SHARED, most)


def runs(batches: np.ndarray) -> list[int]:
    """Rows of one number that stand side by side in a batch."""
    return [sum(1 for _ in run) for batch in batches for _, run in groupby(SHARED[batch])]


def test_rows_that_share_are_drawn_together_but_not_too_many() -> None:
    alone, four = runs(sharing(1).epoch(0)), runs(sharing(4).epoch(0))
    assert max(four) >= 4 and len(four) < 0.5 * len(alone)
    assert np.mean(sharing(2).epoch(0) != sharing(4).epoch(0)) > 0.9
    whole = sharing(2).epoch(0)
    assert sorted(Counter(runs(whole)))[:2] == [1, 2] and np.mean([run > 2 for run in runs(whole)]) < 0.1


def test_sharing_leaves_no_row_out_and_takes_none_twice() -> None:
    drawn = np.concatenate([sharing(4).step(step) for step in range(62 * 3)])
    counts = Counter(drawn.tolist())
    assert set(counts) == set(range(1000)) and max(counts.values()) - min(counts.values()) <= 1


def test_with_one_the_order_is_the_plain_one() -> None:
    assert np.array_equal(sharing(1).epoch(0), Plan(lengths(1000), 16, 62, 3).epoch(0))


def test_scoring_keeps_what_shares_together() -> None:
    rows = np.random.default_rng(0).permutation(1000)[:600]
    batches = scoring_batches(rows, lengths(1000), 16, SHARED)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    flat = np.concatenate(batches)
    assert sum(1 for _ in groupby(SHARED[flat])) == len(np.unique(SHARED[rows]))


# Padding


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("mean", "sd"), [(174, 25), (230, 40)], ids=["five titles", "ten titles"])
def test_at_most_a_tenth_is_padding(mean: float, sd: float, world: int) -> None:
    order = Plan(lengths(5000, mean, sd), 16, 50, 0)
    filled = cells = 0
    for step in range(100):
        for rank in range(world):
            of_rows = order.lengths[worker_slice(order.step(step), rank, world)]
            for micro_batch in np.split(of_rows, 16 // world // 4):
                filled += micro_batch.sum()
                cells += micro_batch.size * micro_batch.max()
    assert 1 - filled / cells <= 0.10


def test_unsorted_batches_would_pad_more() -> None:
    """What the sorting is for: the check above can fail."""
    drawn = lengths(1600).reshape(-1, 4)
    assert 1 - drawn.sum() / (drawn.max(axis=1) * 4).sum() > 0.10


# Scoring


@pytest.mark.parametrize("rows", [1, 15, 16, 100])
def test_scoring_covers_every_row_once(rows: int) -> None:
    ids = np.random.default_rng(2).permutation(500)[:rows]
    batches = scoring_batches(ids, lengths(500), 16)
    assert sorted(np.concatenate(batches)) == sorted(ids)
    assert [len(batch) for batch in batches[:-1]] == [16] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= 16


def test_scoring_puts_like_lengths_together() -> None:
    known = lengths(500)
    batches = scoring_batches(np.arange(500), known, 16)
    assert all(known[left].max() <= known[right].min() for left, right in pairwise(batches))


class Rows:
    """A split that the validator can read."""

    lengths, user_ids = lengths(400), USERS
    shared = np.arange(400) // 3
    labels = np.random.default_rng(4).integers(0, 2, 400)

    def frame(self, ids: np.ndarray) -> pa.Table:
        return pa.table({"user_id": self.user_ids[ids], "label": self.labels[ids]})


@pytest.mark.parametrize("batch", [16, 399, 400])  # 399: two batches, fewer than there are workers
def test_scores_do_not_depend_on_the_number_of_workers(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(model: Any, rows: Any, ids: np.ndarray, *_: Any, kept: None) -> np.ndarray:
        return np.sin(ids + ids.sum()) / 2 + 0.5  # a row's score depends on its batch, as rounding does

    model = SimpleNamespace(set_mode=lambda trained: None)
    monkeypatch.setattr(evaluate, "score_rows", score)
    batches = scoring_batches(sample_rows(USERS, None, None, 0), Rows.lengths, batch, Rows.shared)
    validator = evaluate.ScoreValidator(Rows(), batches, Config())
    first = by_any_group(lambda: validator.evaluate(model, None), monkeypatch)
    assert first["valid_auc_uauc"] == pytest.approx((first["valid_auc"] + first["valid_uauc"]) / 2, abs=1e-15)


# Samples


@pytest.mark.parametrize(("users", "per_user"), [(None, None), (10, None), (None, 3), (10, 3), (1000, 1000)])
def test_a_sample_is_bounded_sorted_and_of_these_rows(users: int | None, per_user: int | None) -> None:
    ids = sample_rows(USERS, users, per_user, 0)
    taken, there = Counter(USERS[ids].tolist()), Counter(USERS.tolist())
    assert np.array_equal(ids, np.unique(ids))
    assert set(ids) <= set(range(len(USERS)))
    assert len(taken) == min(users or len(there), len(there))
    assert all(count == min(per_user or len(USERS), there[user]) for user, count in taken.items())


def test_a_sample_is_fixed_by_its_seed() -> None:
    drawn = [tuple(sample_rows(USERS, 10, 3, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {USERS[i] for i in drawn[0]} != {USERS[i] for i in drawn[2]}


def test_a_users_rows_are_drawn_not_cut() -> None:
    """Not each user's first rows, which would be the oldest."""
    firsts = np.concatenate([np.flatnonzero(user == USERS)[:3] for user in np.unique(USERS)])
    assert len(np.intersect1d(firsts, sample_rows(USERS, None, 3, 0))) < len(firsts) / 2
