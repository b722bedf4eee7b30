"""Metrics of ranked lists against fractions worked out by hand, a slow loop, and RecTools."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rayrec.metrics import SESSION_METRICS, answer_shares, catalogue_coverage, session_metrics
from rayrec.sessions import Sessions

# By events: item 1 five, item 2 four, item 3 two, items 4 to 7 one, items 8 and 9 none; 15 altogether.
TRAIN = [[1, 2, 3], [1, 2], [1, 4, 5, 2], [3, 1], [6, 2, 1], [7]]
COUNTS = [0, 5, 4, 2, 1, 1, 1, 1, 0, 0]
RANKED = [[4, 5, 6, 7], [3, 9, 4, 5], [6, 3, 0, 0], [2, 4, 5, 6], [8, 0, 0, 0], [2, 1, 3, 4]]
TRUTH = [[5], [3], [7, 3, 8], [9], [8, 4], [3, 4, 1, 2, 5]]

# RecTools 0.19.0 (numpy 1.26.4) on the lists above: NDCG(divide_by_achievable=True), HitRate, MRR, MeanInvUserFreq,
# each calc_per_user, and CatalogCoverage(normalize=True).
RECTOOLS: dict[str, list[float]] = {
    "ndcg@1": [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    "hr@1": [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    "mrr@1": [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    "miuf@1": [2.584962500721156, 1.5849625007211563, 2.584962500721156, 0.5849625007211563, 2.584962500721156,
               0.5849625007211563],
    "ndcg@3": [0.6309297535714575, 1.0, 0.2960819109658652, 0.0, 0.6131471927654584, 1.0],
    "hr@3": [1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    "mrr@3": [0.5, 1.0, 0.5, 0.0, 1.0, 1.0],
    "miuf@3": [2.584962500721156, 2.2516291673878226, 2.084962500721156, 1.9182958340544893, 2.584962500721156,
               0.8109864690920355],
    "ndcg@4": [0.6309297535714575, 1.0, 0.2960819109658652, 0.0, 0.6131471927654584, 1.0],
    "hr@4": [1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    "mrr@4": [0.5, 1.0, 0.5, 0.0, 1.0, 1.0],
    "miuf@4": [2.584962500721156, 2.334962500721156, 2.084962500721156, 2.084962500721156, 2.584962500721156,
               1.2544804769993156],
}  # fmt: skip
RECTOOLS_COVERAGE = {1: 0.5555555555555556, 3: 0.8888888888888888, 4: 1.0}

Lists = list[list[int]]


def values(ks: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    return session_metrics(RANKED, Sessions.of(TRUTH), COUNTS, ks)


def bits(*counts: int) -> float:
    return sum(-math.log2(count / 15) for count in counts) / len(counts)


def test_by_hand() -> None:
    found = values([1, 3])
    third = Fraction(1, 2)  # the gain at place 3: 1 / log2(4)
    second = 1 / math.log2(3)  # and at place 2
    ideal = [1, 1 + second, float(1 + third) + second]  # of one, two, three and more held-out items
    assert found["ndcg@1"].tolist() == [0, 1, 0, 0, 1, 1]
    assert found["ndcg@3"] == pytest.approx([second, 1, second / ideal[2], 0, 1 / ideal[1], 1])
    assert found["hr@3"].tolist() == [1, 1, 1, 0, 1, 1]
    assert found["mrr@3"].tolist() == [1 / 2, 1, 1 / 2, 0, 1, 1]
    # The three most popular are 1, 2 and 3; truths but for them: {5}, {}, {7, 8}, {9}, {8, 4}, {4, 5}.
    assert found["serendipity@3"].tolist() == [1, 0, 0, 0, 1 / 2, 0]
    # The most popular is 1: {5}, {3}, {7, 3, 8}, {9}, {8, 4}, {3, 4, 2, 5}, and of them min(.., 1) are counted.
    assert found["serendipity@1"].tolist() == [0, 1, 0, 0, 1, 1]
    expected = [bits(1, 1, 1), bits(2, 1, 1), bits(1, 2), bits(4, 1, 1), bits(1), bits(4, 5, 2)]  # cold 8, 9: as 1
    assert found["novelty@3"] == pytest.approx(expected)


def test_ties_in_popularity_go_to_the_lower_id() -> None:
    # k = 4 takes item 4 of the four items with one event, so that only 5 of {4, 5} is unexpected.
    found = session_metrics([[5, 4, 0, 0]], Sessions.of([[4, 5]]), COUNTS, [4])
    assert found["serendipity@4"].tolist() == [1]
    found = session_metrics([[4, 0, 0, 0]], Sessions.of([[4, 5]]), COUNTS, [4])
    assert found["serendipity@4"].tolist() == [0]


def test_cold_items_are_never_popular() -> None:
    found = session_metrics([[9]], Sessions.of([[9]]), COUNTS, [9])  # seven items occur, so P_9 has seven
    assert found["serendipity@9"].tolist() == [1]


def test_an_empty_list_has_nothing() -> None:
    for nothing in ([[0, 0]], np.empty((1, 0), dtype=np.int64)):
        found = session_metrics(nothing, Sessions.of([[1]]), COUNTS, [2])
        assert {name: value.tolist() for name, value in found.items()} == {f"{name}@2": [0] for name in SESSION_METRICS}
        assert catalogue_coverage(nothing, 9, 2) == 0


def test_a_place_left_empty_moves_nothing_up() -> None:
    found = session_metrics([[0, 5]], Sessions.of([[5]]), COUNTS, [1, 2])
    assert found["hr@1"].tolist() == [0] and found["mrr@2"].tolist() == [1 / 2]


def test_what_is_held_out_twice_counts_once() -> None:
    once, twice = (session_metrics([[5, 3]], Sessions.of([truth]), COUNTS, [2]) for truth in ([5, 4], [5, 4, 5]))
    assert once["ndcg@2"] == twice["ndcg@2"] and once["serendipity@2"] == twice["serendipity@2"]


@pytest.mark.parametrize("k", [1, 3, 4])
def test_equals_rectools(k: int) -> None:
    found = values([k])
    for name in ("ndcg", "hr", "mrr"):
        np.testing.assert_allclose(found[f"{name}@{k}"], RECTOOLS[f"{name}@{k}"], rtol=0, atol=1e-9)
    shift = math.log2(15 / 6)  # 15 events of 6 users, nobody with an item twice
    np.testing.assert_allclose(found[f"novelty@{k}"] - shift, RECTOOLS[f"miuf@{k}"], rtol=0, atol=1e-9)
    assert catalogue_coverage(RANKED, 9, k) == pytest.approx(RECTOOLS_COVERAGE[k], abs=1e-9)


def random_case(seed: int, sessions: int = 60, items: int = 30, places: int = 8) -> tuple[Lists, Lists, Lists]:
    """Training sessions, lists that end early here and there, and one to five held-out items each."""
    generator = np.random.default_rng(seed)
    draw = [generator.permutation(items) + 1 for _ in range(3 * sessions)]
    train = [row[: generator.integers(1, 5)].tolist() for row in draw[:sessions]]
    shown = [row[: generator.integers(1, places + 1)].tolist() for row in draw[sessions : 2 * sessions]]
    ranked = [row + [0] * (places - len(row)) for row in shown]
    return train, ranked, [row[: generator.integers(1, 6)].tolist() for row in draw[2 * sessions :]]


def slow(ranked: list[int], truth: list[int], counts: list[int], k: int) -> dict[str, float]:
    """One session's values, the obvious way."""
    shown = [item for item in ranked[:k] if item]
    seen = [item for item in range(1, len(counts)) if counts[item]]
    popular = sorted(seen, key=lambda item: (-counts[item], item))[:k]
    unexpected = set(truth) - set(popular)
    gains = [1 / math.log2(place + 2) for place in range(k)]
    hits = [place for place, item in enumerate(ranked[:k]) if item in truth]
    information = [-math.log2(max(counts[item], 1) / sum(counts)) for item in shown]
    return {
        "ndcg": sum(gains[place] for place in hits) / sum(gains[: min(len(truth), k)]),
        "hr": float(bool(hits)),
        "mrr": 1 / (hits[0] + 1) if hits else 0,
        "serendipity": len(unexpected & set(shown)) / min(len(unexpected), k) if unexpected else 0,
        "novelty": sum(information) / len(shown),
    }


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop(seed: int) -> None:
    train, ranked, truth = random_case(seed)
    counts = Sessions.of(train).counts(30)
    found = session_metrics(ranked, Sessions.of(truth), counts, [1, 5, 8, 20])
    for k in (1, 5, 8, 20):
        expected = [slow(*case, counts.tolist(), k) for case in zip(ranked, truth, strict=True)]
        for name in SESSION_METRICS:
            np.testing.assert_allclose(found[f"{name}@{k}"], [one[name] for one in expected], rtol=0, atol=1e-12)
        assert catalogue_coverage(ranked, 30, k) == len({i for row in ranked for i in row[:k] if i}) / 30


def test_slices_are_masks() -> None:
    chosen = np.array([True, False, True, False, False, True])
    part = [np.array(RANKED)[chosen], Sessions.of([TRUTH[0], TRUTH[2], TRUTH[5]])]
    found = session_metrics(part[0], part[1], COUNTS, [3])
    for name, whole in values([3]).items():
        assert found[name].tolist() == whole[chosen].tolist()


def test_equals_rectools_as_installed() -> None:
    pytest.importorskip("rectools")
    import pandas as pd  # noqa: PLC0415
    from rectools.metrics import MRR, NDCG, CatalogCoverage, HitRate, MeanInvUserFreq  # noqa: PLC0415

    def table(lists: Lists) -> Any:
        rows = [(u, i, place + 1) for u, row in enumerate(lists) for place, i in enumerate(row) if i]
        return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])

    train, ranked, truth = random_case(7)
    counts = Sessions.of(train).counts(30)
    shown, held, before = table(ranked), table(truth)[["user_id", "item_id"]], table(train)[["user_id", "item_id"]]
    found = session_metrics(ranked, Sessions.of(truth), counts, [1, 5, 8])
    for k in (1, 5, 8):
        theirs = {"ndcg": NDCG(k=k, divide_by_achievable=True), "hr": HitRate(k=k), "mrr": MRR(k=k)}
        for name, metric in theirs.items():
            expected = metric.calc_per_user(shown, held).sort_index().to_numpy()
            np.testing.assert_allclose(found[f"{name}@{k}"], expected, rtol=0, atol=1e-9)
        expected = MeanInvUserFreq(k=k).calc_per_user(shown, before).sort_index().to_numpy()
        shift = math.log2(counts.sum() / len(train))
        np.testing.assert_allclose(found[f"novelty@{k}"] - shift, expected, rtol=0, atol=1e-9)
        coverage = CatalogCoverage(k=k, normalize=True).calc(shown, range(30))
        assert catalogue_coverage(ranked, 30, k) == pytest.approx(coverage, abs=1e-9)


@pytest.mark.parametrize(
    ("ranked", "truth", "counts", "ks", "message"),
    [
        ([[1], [2]], [[1]], COUNTS, [1], r"shape \(2, 1\) for 1 sessions"),
        ([[1], [2]], [[1], []], COUNTS, [1], "session 1 has no held-out item"),
        ([[10]], [[1]], COUNTS, [1], "ranked has item 10 of a catalogue of 9"),
        ([[1]], [[10]], COUNTS, [1], "truth has item 10 of a catalogue of 9"),
        ([[-1]], [[1]], COUNTS, [1], "ranked has item -1"),
        ([[0, 0], [2, 2]], [[1], [1]], COUNTS, [1], "session 1 is shown item 2 twice"),
        ([[1]], [[1]], [0, 0], [1], "training has no event"),
        ([[1]], [[1]], COUNTS, [0], "k = 0"),
    ],
)
def test_bad_input_is_refused(ranked: Lists, truth: Lists, counts: list[int], ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session_metrics(ranked, Sessions.of(truth), counts, ks)


def test_shares_of_answers_by_hand() -> None:
    assert answer_shares([5, 0, 3], [1, 0, 2], [0, 0, 1]) == {
        "names": 8,
        "unknown": 3 / 8,
        "barred": 1 / 8,
        "mapped": 4 / 8,
    }
    assert answer_shares([0, 0], [0, 0], [0, 0]) == {"names": 0, "unknown": None, "barred": None, "mapped": None}
