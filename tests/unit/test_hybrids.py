"""Hybrids against the procedures of the paper's code in plain Python, and their settings against slow choices."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from left_out import ITEMS, SESSIONS, prepared_run, with_names

from rayrec import storage
from rayrec.data import columns as c
from rayrec.data.catalogue import lists_table
from rayrec.data.plan import Ids
from rayrec.evaluation import predictions, scoring
from rayrec.models.ranking.hybrids import by_last_item, popular_items, with_first, without_unpopular
from rayrec.names.tables import NameTable, ensemble_table, initial_table, nearness_table, tables_read
from rayrec.next_item.hybrids import hybrid_lists
from rayrec.next_item.rankers import lists_of, llmseqsim, similar_by
from rayrec.run import Run
from rayrec.sessions import Index, Sessions
from rayrec.systems import SystemName

ENSEMBLE = SystemName.EMBEDDING_ENSEMBLE
POPULARITY = SystemName.LLMSEQSIM_POPULARITY
SEQUENTIAL = SystemName.LLMSEQSIM_SEQUENTIAL
ENCODER = SystemName.SASREC
CUT = {"valid": -2, "test": -1}  # the target's place
TRAINING = [session[:-2] for session in SESSIONS]
ALL = np.arange(len(SESSIONS))
K = 5


def some_lists(seed: int, places: int, sessions: int = 40, items: int = 30) -> Index:
    """Distinct items, best first; some lists end early."""
    draw = np.random.default_rng(seed)
    lists = np.array([draw.permutation(items)[:places] + 1 for _ in range(sessions)])
    lists[np.arange(places) >= draw.integers(places // 2, places + 1, sessions)[:, None]] = 0
    return lists


def plain(lists: Index) -> list[list[int]]:
    return [[item for item in row if item] for row in lists.tolist()]


# As the paper's code does it


def slow_first(first: list[int], second: list[int], rank: int) -> list[int]:
    return list(dict.fromkeys(first[:rank] + second))


def slow_without(ranked: list[int], popular: set[int], k: int) -> list[int]:
    left = list(ranked)
    for item in [item for item in ranked if item not in popular]:
        if len(left) > k:
            left.remove(item)
    return left[:k]


def slow_popular(sessions: list[list[int]], quantile: float) -> set[int]:
    held = {item: sum(item in session for session in sessions) for session in sessions for item in session}
    ordered = sorted(held.values())
    at = quantile * (len(ordered) - 1)  # between the two nearest, as pandas has it
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return {item for item, count in held.items() if count >= low + (high - low) * (at - math.floor(at))}


@pytest.mark.parametrize("rank", [0, 1, 3, 6, 20])
def test_the_first_lists_best_lead(rank: int) -> None:
    first, second = some_lists(1, 6), some_lists(2, 6)
    found = with_first(first, second, rank)
    assert found.shape == second.shape
    expected = [slow_first(*both, rank)[:6] for both in zip(plain(first), plain(second), strict=True)]
    assert plain(found) == expected and (np.diff(found == 0, axis=1) >= 0).all()
    assert (found == second).all() if rank == 0 else (found != second).any()


@pytest.mark.parametrize("k", [1, 4, 8])
def test_unpopular_items_go_while_there_are_others(k: int) -> None:
    lists, popular = some_lists(3, 12), {*range(1, 31, 4)}
    flags = np.array([item in popular for item in range(31)])
    found = without_unpopular(lists, flags, k)
    assert plain(found) == [slow_without(ranked, popular, k) for ranked in plain(lists)]
    kept = [sum(item not in popular for item in ranked) for ranked in plain(found)]
    assert k == 1 or 0 < sum(kept) < k * len(lists)


def test_too_few_popular_items_leave_the_last_of_the_others() -> None:
    flags = np.array([False, False, True, False, False, True])
    assert without_unpopular(np.array([[1, 2, 3, 4, 5]]), flags, 3).tolist() == [[2, 4, 5]]
    assert without_unpopular(np.array([[1, 2, 3, 0, 0]]), flags, 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("quantile", [0, 0.25, 0.5, 0.6, 0.75, 1])
def test_popularity_is_the_share_of_training_sessions(quantile: float) -> None:
    found = popular_items(Sessions.of(TRAINING), ITEMS, quantile)
    assert {*np.flatnonzero(found)} == slow_popular(TRAINING, quantile) and len(found) == ITEMS + 1
    again = [session * 2 for session in TRAINING]  # an item that comes again is in no more sessions
    assert np.array_equal(popular_items(Sessions.of(again), ITEMS, quantile), found)


def test_the_last_item_decides_who_is_asked() -> None:
    flags = np.array([False, True, False, True])
    prompts = Sessions.of([[1, 2], [2, 1], [], [2, 2, 3], [3]])
    sequential, similar = np.full((5, 2), 7), np.full((5, 2), 8)
    assert by_last_item(prompts, sequential, similar, flags)[:, 0].tolist() == [8, 7, 8, 7, 7]


# What validation chooses


def invented(split: str, ids: Ids) -> Index:
    """An encoder's lists: now and then the target is among them."""
    lists = np.zeros((len(ids), K), np.int64)
    for place, row in enumerate(ids):
        drawn = np.random.default_rng(100 * CUT[split] ** 2 + row).permutation(ITEMS)[:K] + 1
        left = [item for item in drawn if item not in SESSIONS[row][: CUT[split]]]
        lists[place, : len(left)] = left
    return lists


def members_of(run: Run, system: SystemName, split: str) -> list[list[list[int]]]:
    similar, k = llmseqsim(run), 5 * K if system is POPULARITY else K
    found = [lists_of(run, similar, split, ALL, k)]
    if system is ENSEMBLE:
        other = similar_by(run, run.config.ranking.embedding_ensemble, ensemble_table(run.config))
        found.insert(0, lists_of(run, other, split, ALL, K))
    if system is SEQUENTIAL:
        found.insert(0, invented(split, ALL))
    return [plain(lists) for lists in found]


def slow_joined(system: SystemName, row: int, split: str, own: list[list[int]], value: float) -> list[int]:
    if system is ENSEMBLE:
        return slow_first(own[0], own[1], int(value))[:K]
    popular = slow_popular(TRAINING, value)
    if system is POPULARITY:
        return slow_without(own[0], popular, K)
    return own[0] if SESSIONS[row][CUT[split] - 1] in popular else own[1]


def slow_lists(run: Run, system: SystemName, split: str, value: float) -> list[list[int]]:
    members = zip(*members_of(run, system, split), strict=True)
    return [slow_joined(system, row, split, list(own), value) for row, own in enumerate(members)]


def slow_ndcg(lists: list[list[int]]) -> float:
    targets = [session[CUT["valid"]] for session in SESSIONS]
    places = [ranked.index(to) + 1 if to in ranked else 0 for ranked, to in zip(lists, targets, strict=True)]
    return sum(1 / math.log2(place + 1) for place in places if place) / len(places)


OFFERED: dict[SystemName, tuple[str, list[float]]] = {
    ENSEMBLE: ("ranks", [0, 1, 2, 3, 4, 5, 10, 20]),
    POPULARITY: ("quantiles", [0.25, 0.5, 0.75]),
    SEQUENTIAL: ("quantiles", [0.25, 0.5, 0.75]),
}


@pytest.mark.parametrize("system", OFFERED)
def test_the_setting_is_the_best_of_validation(system: SystemName, tmp_path: Path) -> None:
    run = with_names(prepared_run(tmp_path))
    key, offered = OFFERED[system]
    judged = {value: slow_ndcg(slow_lists(run, system, "valid", value)) for value in offered}
    assert len({*judged.values()}) > 1
    best = next(value for value in offered if judged[value] == max(judged.values()))
    lists, told = hybrid_lists(run, system, ALL, invented)
    assert told == {key.removesuffix("s"): best, "valid_ndcg": pytest.approx(judged[best])}
    assert lists.shape == (len(SESSIONS), K) and plain(lists) == slow_lists(run, system, "test", best)
    some, again = hybrid_lists(run, system, ALL[3:6], invented)
    assert np.array_equal(some, lists[3:6]) and again == told  # whatever rows are asked for


@pytest.mark.parametrize("system", OFFERED)
def test_a_setting_that_is_given_is_taken(system: SystemName, tmp_path: Path) -> None:
    key, offered = OFFERED[system]

    def only_tests(split: str, ids: Ids) -> Index:
        assert split == "test"
        return invented(split, ids)

    found = []
    for number, value in enumerate((offered[0], offered[-1])):
        run = with_names(prepared_run(tmp_path / str(number), {f"ranking.{system}.{key}": [value]}))
        lists, told = hybrid_lists(run, system, ALL, only_tests)
        assert told == {key.removesuffix("s"): value} and plain(lists) == slow_lists(run, system, "test", value)
        found.append(lists)
    assert not np.array_equal(found[0], found[1])


# In a run


def test_whoever_reads_names_has_its_tables(tmp_path: Path) -> None:
    own = {"encoder.initial": {"names": "pca"}, "ranking.embedding_ensemble.names": {"sources": ["other"]}}
    config = prepared_run(tmp_path, own).config
    near, first, initial = nearness_table(config), ensemble_table(config), initial_table(config)
    assert first.names.sources == ("other",) != near.names.sources and first.width is None

    def read(*systems: SystemName) -> list[NameTable]:
        return tables_read(config, systems)

    assert read(SystemName.LLMSEQSIM) == read(POPULARITY) == [near]
    assert read(ENSEMBLE) == [near, first] and read(ENCODER) == [initial] and read(SEQUENTIAL) == [near, initial]
    assert read(SystemName.SKNN) == [] and read(POPULARITY, SEQUENTIAL, ENSEMBLE) == [near, initial, first]


def test_their_files_lie_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_names(prepared_run(tmp_path))
    asked: list[tuple[tuple[SystemName, ...], str]] = []

    def judged(_: Run, rows: Mapping[SystemName, Ids], split: str, **__: Any) -> Any:
        if rows:
            asked.append((tuple(rows), split))
        for system, ids in rows.items():
            yield system, lists_table(invented(split, ids), np.ones((len(ids), K), np.float32))

    monkeypatch.setattr(scoring, "_judged", judged)
    scoring.score_systems(run, run.systems)
    assert asked == [((ENCODER,), "test"), ((ENCODER,), "valid")]  # what the encoder said of the test is taken as it is
    alone = with_names(prepared_run(tmp_path / "alone"))
    scoring.score_systems(alone, [SEQUENTIAL])  # as in an experiment
    assert [split for _, split in asked[2:]] == ["valid", "test"]
    for system in OFFERED:
        expected, told = hybrid_lists(run, system, ALL, invented)
        for of in (run, alone) if system is SEQUENTIAL else (run,):
            ranked = predictions.read_predictions(of, system)[c.RANKED]
            assert [[*one] for one in ranked] == plain(expected)
            assert json.loads(storage.read_text(predictions.choice_path(of, system))) == told
