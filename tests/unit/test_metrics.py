"""Metrics against fractions worked out by hand, and against scikit-learn."""

import json
import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.metrics import (
    METRICS,
    SLICES,
    evaluate,
    evaluate_slices,
    paired_difference,
    pooled_difference,
    quantile_bin,
    relative_change,
    reliability,
    resampled_mean,
)
from rayrec.metrics.pointwise import auc, ece_bin, from_sums, log_loss, uauc, user_auc, user_sums
from rayrec.metrics.significance import _Ranking

# User 1: likes at .9 and .4, dislikes at .6 and .4 -> of 4 pairs: .9 wins 2, .4 loses one and ties one.
# User 2: like .3 against dislike .2 -> wins. User 3: no dislike -> does not count.
USER = [1, 1, 1, 1, 2, 2, 3]
LABEL = [1, 1, 0, 0, 1, 0, 1]
SCORE = [0.9, 0.4, 0.6, 0.4, 0.3, 0.2, 0.5]

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def rows(count: int, users: int, seed: int, decimals: int = 16) -> Arrays:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, count)
    score = 1 / (1 + np.exp(-generator.normal(0.4 * label, 1.0)))
    return generator.integers(0, users, count) * 7, label, np.round(score, decimals)


def frame(count: int, users: int, seed: int) -> pd.DataFrame:
    user, label, score = rows(count, users, seed)
    warm = np.random.default_rng(seed).random(count) < 0.6
    table: pd.DataFrame = pd.DataFrame(
        {"user_id": user, "item_id": user + 1, "label": label.astype(np.int8), "score": score}
    )
    table["is_warm"], table["is_strict_cold"] = warm, False
    return table


def test_user_auc_by_hand() -> None:
    expected = [float((2 + Fraction(1, 2)) / 4), 1.0, math.nan]
    assert user_auc(USER, LABEL, SCORE) == pytest.approx(expected, nan_ok=True)
    assert uauc(USER, LABEL, SCORE) == (float((Fraction(5, 8) + 1) / 2), 2)


def test_auc_by_hand() -> None:
    # Likes .9 .4 .3 .5 against dislikes .6 .4 .2: 3 + (1/2 + 1) + 1 + 2 of 12 pairs.
    assert auc(LABEL, SCORE) == float(Fraction(15, 2) / 12)
    assert auc([0, 1, 0, 1], [0.5] * 4) == 0.5
    assert auc([0, 1], [0.1, 0.2]) == 1.0
    assert auc([0, 1], [-0.0, 0.0]) == 0.5  # whose bits differ
    assert auc([0, 1, 1], [-3.0, -5.0, 7.0]) == auc([0, 1, 1], [2.0, 1.0, 3.0]) == 0.5  # no probabilities


def test_log_loss_by_hand() -> None:
    assert log_loss([1, 0], [0.25, 0.5]) == pytest.approx((math.log(4) + math.log(2)) / 2, abs=1e-15)
    assert 36 < log_loss([1], [0.0]) < 37  # clipped, not infinite


def test_confusion_metrics_by_hand() -> None:
    # Predicted Yes: .9 (like), .6 (dislike), .5 (like). TP 2, FP 1, FN 2, TN 2.
    found = {name: value for name, (value, _, _) in evaluate(USER, LABEL, SCORE, cutoff=0.5, resamples=10).items()}
    by_hand = {
        "accuracy": Fraction(4, 7),
        "precision": Fraction(2, 3),
        "recall": Fraction(1, 2),
        "f1": Fraction(4, 7),
        "precision_macro": (Fraction(2, 3) + Fraction(1, 2)) / 2,
        "recall_macro": (Fraction(1, 2) + Fraction(2, 3)) / 2,
        "f1_macro": (Fraction(4, 7) + Fraction(4, 7)) / 2,
    }
    for name, value in by_hand.items():
        assert found[name] == pytest.approx(float(value), abs=1e-15), name


def test_ece_by_hand() -> None:
    # Scores 4/60 = 1/15 and .1 share bin 1: |2 - 1/6|; 1.0 falls into the last bin: |0 - 1|. Together over 3 rows.
    assert ece_bin([0.0, 0.0999, 0.5, 0.95, 1.0]).tolist() == [0, 1, 7, 14, 14]
    sums = user_sums(np.zeros(3, dtype=np.int64), [1, 1, 0], [0.07, 0.1, 1.0], cutoff=0.5)
    assert from_sums(sums)["ece"][0] == pytest.approx((2 - 0.17 + 1) / 3, abs=1e-15)


@pytest.mark.parametrize("decimals", [16, 2, 1])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed: int, decimals: int) -> None:
    user, label, score = rows(3000, 150, seed, decimals)
    found = {name: estimate.value for name, estimate in evaluate(user, label, score, cutoff=0.4, resamples=2).items()}
    said = score >= 0.4
    expected = {
        "auc": reference.roc_auc_score(label, score),
        "log_loss": reference.log_loss(label, score),
        "accuracy": reference.accuracy_score(label, said),
    }
    for suffix, average in (("", "binary"), ("_macro", "macro")):
        scores = reference.precision_recall_fscore_support(label, said, average=average)[:3]
        expected |= {
            f"{name}{suffix}": value for name, value in zip(("precision", "recall", "f1"), scores, strict=True)
        }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_uauc_is_the_groupby() -> None:
    user, label, score = rows(2000, 300, seed=5, decimals=1)
    groups = pd.DataFrame({"user": user, "label": label, "score": score}).groupby("user")
    each = [reference.roc_auc_score(g.label, g.score) if g.label.nunique() == 2 else math.nan for _, g in groups]
    assert user_auc(user, label, score) == pytest.approx(each, abs=1e-12, nan_ok=True)
    value, counted = uauc(user, label, score)
    assert value == pytest.approx(np.nanmean(each), abs=1e-12)
    assert counted == np.isfinite(each).sum() < len(each)


@pytest.mark.parametrize("large", [0, 7, 199])
def test_users_of_many_rows(large: int) -> None:
    """More rows than are sorted at once, and a user who has as many alone."""
    user, label, score = rows(100_000, 200, seed=6, decimals=3)
    user = np.where(np.arange(len(user)) % 2, user // 7, large)
    each = [reference.roc_auc_score(label[user == one], score[user == one]) for one in range(200)]
    assert user_auc(user, label, score) == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("kind", [0, 1])
def test_one_class(kind: int) -> None:
    found = evaluate([1, 1, 2], [kind] * 3, [0.2, 0.6, 0.7], resamples=20)
    assert all(math.isnan(part) for name in ("auc", "uauc") for part in found[name])
    assert found["accuracy"].value == pytest.approx(2 / 3 if kind else 1 / 3)
    assert math.isfinite(found["log_loss"].high)


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([0, 2], [0.1, 0.2], "label"),
        ([0, 1], [0.1, math.nan], "row 1 has score nan"),
        ([0, 1], [1.5, 0], "row 0"),
        ([0], [0.1, 0.2], "lengths"),
    ],
)
def test_nonsense_is_refused(label: list[int], score: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate([1, 2], label, score)


@pytest.mark.parametrize("decimals", [16, 1])
def test_weighted_auc_is_the_auc_of_the_repeated_sample(decimals: int) -> None:
    user, label, score = rows(300, 20, seed=3, decimals=decimals)
    names, index = np.unique(user, return_inverse=True)
    weights = np.random.default_rng(1).integers(0, 4, (5, len(names)))
    found = _Ranking.of(index, label, score).auc(weights.astype(np.float64))
    for row, value in zip(weights, found, strict=True):
        repeated = np.repeat(np.arange(len(user)), row[index])
        assert value == pytest.approx(reference.roc_auc_score(label[repeated], score[repeated]), abs=1e-12)


def test_intervals_equal_those_of_drawing_users_one_by_one() -> None:
    user, label, score = rows(200, 12, seed=8)
    names = np.unique(user)
    generator = np.random.default_rng(4)
    draws = []
    for drawn in generator.integers(len(names), size=(60, len(names))):
        parts = [np.flatnonzero(user == names[number]) for number in drawn]
        taken = np.concatenate(parts)
        copies = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # a user drawn twice counts as two
        draws.append(
            (
                auc(label[taken], score[taken]),
                uauc(copies, label[taken], score[taken])[0],
                log_loss(label[taken], score[taken]),
            )
        )
    found = evaluate(user, label, score, resamples=60, seed=4)
    for name, column in zip(("auc", "uauc", "log_loss"), np.array(draws).T, strict=True):
        assert found[name][1:] == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=1e-12), name


def test_bootstrap_is_seeded() -> None:
    arrays = rows(500, 40, seed=1)
    assert evaluate(*arrays, resamples=100, seed=3) == evaluate(*arrays, resamples=100, seed=3)
    assert evaluate(*arrays, resamples=100, seed=3)["auc"] != evaluate(*arrays, resamples=100, seed=4)["auc"]


def test_bootstrap_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = rows(500, 41, seed=1)
    whole = evaluate(*arrays, resamples=100)
    monkeypatch.setattr("rayrec.metrics.bootstrap._BLOCK", 3500)  # 7 resamples a block
    for name, estimate in evaluate(*arrays, resamples=100).items():
        assert estimate == pytest.approx(whole[name], abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    user, score = np.repeat(np.arange(80), 5), np.full(400, 0.9)
    covered = 0
    for trial in range(150):
        habit = generator.beta(7, 3, 80)  # users differ: rows of one user are alike, the expected accuracy is .7
        label = (generator.random(400) < habit[user]).astype(np.int64)
        _, low, high = evaluate(user, label, score, resamples=200, seed=trial)["accuracy"]
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_one_user_has_no_interval() -> None:
    value, low, high = evaluate([4, 4, 4], [0, 1, 1], [0.1, 0.6, 0.7], resamples=50)["auc"]
    assert value == 1.0 and math.isnan(low) and math.isnan(high)


def test_paired_difference() -> None:
    user, label, good = rows(1500, 80, seed=2)
    bad = np.random.default_rng(9).random(1500)
    found = paired_difference(user, label, good, bad, resamples=400)
    assert found["auc"].value == pytest.approx(auc(label, good) - auc(label, bad), abs=1e-15)
    assert found["uauc"].value == pytest.approx(uauc(user, label, good)[0] - uauc(user, label, bad)[0], abs=1e-12)
    assert found["auc"].low > 0 and found["log_loss"].high < 0
    assert found["auc"].p == 2 / 401
    for name, (value, low, high, p) in paired_difference(user, label, good, good, resamples=50).items():
        assert (value, low, high, p) == (0, 0, 0, 1), name


def test_slices_are_plain_json_and_complete() -> None:
    predictions = frame(800, 60, seed=6)
    result = json.loads(json.dumps(evaluate_slices(predictions, resamples=50), allow_nan=False))
    assert tuple(result) == SLICES
    assert all(tuple(part["metrics"]) == METRICS for part in result.values())
    assert set(predictions.columns) == set(PREDICTIONS_SCHEMA.names)

    cold = predictions[~predictions.is_warm]
    assert result["cold"]["counts"]["rows"] == len(cold)
    assert result["cold"]["counts"]["positives"] == cold.label.sum()
    assert result["warm"]["counts"]["rows"] + len(cold) == result["all"]["counts"]["rows"] == 800
    assert result["cold"]["metrics"]["auc"]["value"] == pytest.approx(
        reference.roc_auc_score(cold.label, cold.score), abs=1e-12
    )
    assert (
        result["all"]["counts"]["users_with_both_classes"] == predictions.groupby("user_id").label.nunique().eq(2).sum()
    )

    empty = result["strict_cold"]
    assert set(empty["counts"].values()) == {0}
    assert all(set(metric.values()) == {None} for metric in empty["metrics"].values())


def test_a_thousand_resamples_are_quick() -> None:
    arrays = rows(2000, 120, seed=0)
    start = time.perf_counter()
    evaluate(*arrays, resamples=1000)
    assert time.perf_counter() - start < 2


def test_a_pooled_difference_equals_that_of_a_slow_loop() -> None:
    """Mean over seeds of the differences of each seed's pair, users drawn one by one."""
    user, label, score = rows(240, 14, seed=8, decimals=2)
    generator = np.random.default_rng(5)
    systems = [np.clip(score + generator.normal(0, 0.1, 240), 0, 1) for _ in range(3)]
    others = [generator.random(240) for _ in range(3)]
    names = np.unique(user)

    def metrics(copies: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> list[float]:
        groups = [np.flatnonzero(copies == copy) for copy in np.unique(copies)]
        both = [group for group in groups if len(set(labels[group])) == 2]
        return [
            reference.roc_auc_score(labels, scores),
            float(np.mean([reference.roc_auc_score(labels[group], scores[group]) for group in both])),
            reference.log_loss(labels, scores),
            reference.accuracy_score(labels, scores >= 0.4),
            reference.f1_score(labels, scores >= 0.4),
        ]

    def difference(copies: npt.NDArray[Any], taken: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        each = [
            np.subtract(metrics(copies, label[taken], one[taken]), metrics(copies, label[taken], other[taken]))
            for one, other in zip(systems, others, strict=True)
        ]
        return np.mean(each, axis=0)

    draws = []
    for drawn in np.random.default_rng(4).integers(len(names), size=(50, len(names))):
        parts = [np.flatnonzero(user == names[number]) for number in drawn]
        copies = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # a user drawn twice counts as two
        draws.append(difference(copies, np.concatenate(parts)))
    first, second = (
        resampled_mean(user, label, scores, cutoff=0.4, resamples=50, seed=4) for scores in (systems, others)
    )
    found = pooled_difference(first, second)
    whole = difference(user, np.arange(240))
    for name, value, column in zip(
        ("auc", "uauc", "log_loss", "accuracy", "f1"), whole, np.array(draws).T, strict=True
    ):
        assert found[name].value == pytest.approx(value, abs=1e-12), name
        assert found[name][1:3] == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=1e-12), name
        tail = min((column <= 0).sum(), (column >= 0).sum())
        assert found[name].p == pytest.approx(min(1, 2 * (1 + tail) / 51)), name


def test_one_seed_pools_to_the_paired_difference() -> None:
    user, label, good = rows(600, 50, seed=2)
    bad = np.random.default_rng(9).random(600)
    pooled = pooled_difference(*(resampled_mean(user, label, [scores], resamples=60, seed=1) for scores in (good, bad)))
    assert {name: pooled[name] for name in ("auc", "uauc", "log_loss")} == paired_difference(
        user, label, good, bad, resamples=60, seed=1
    )
    twice = resampled_mean(user, label, [good, bad], resamples=60, seed=1)
    assert [each["auc"] for each in twice.each] == [auc(label, good), auc(label, bad)]
    with pytest.raises(ValueError, match="60 and 0 resamples"):
        pooled_difference(twice, resampled_mean([1] * 600, label, [good], resamples=60))


def test_a_relative_change_equals_that_of_a_slow_loop() -> None:
    user, label, score = rows(300, 12, seed=3, decimals=2)
    generator = np.random.default_rng(6)
    systems = [np.clip(score + generator.normal(0, 0.1, 300), 0, 1) for _ in range(2)]
    other = generator.random(300)
    names = np.unique(user)

    def change(taken: npt.NDArray[Any]) -> float:
        each = [reference.roc_auc_score(label[taken], one[taken]) for one in systems]
        return float(np.mean(each) / reference.roc_auc_score(label[taken], other[taken]) - 1)

    draws = np.random.default_rng(4).integers(len(names), size=(40, len(names)))
    slow = [change(np.concatenate([np.flatnonzero(user == names[number]) for number in drawn])) for drawn in draws]
    first, second = (resampled_mean(user, label, scores, resamples=40, seed=4) for scores in (systems, [other]))
    found = relative_change(first, second)["auc"]
    assert found.value == pytest.approx(change(np.arange(300)), abs=1e-12)
    assert found[1:] == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=1e-12)
    nothing = relative_change(first, resampled_mean(user, label, [np.zeros(300)], resamples=40, seed=4))["f1"]
    assert all(math.isnan(value) for value in nothing)  # of an F1 of 0


def test_reliability_is_that_of_scikit_learn() -> None:
    _, label, score = rows(1200, 9, seed=1)
    counted, means, shares = reliability(label, score, bins=8)
    expected = calibration_curve(label, score, n_bins=8, strategy="quantile")
    assert counted.tolist() == [150] * 8
    assert shares == pytest.approx(expected[0], abs=1e-12) and means == pytest.approx(expected[1], abs=1e-12)


def test_reliability_of_ties_and_of_few_rows() -> None:
    counted, means, shares = reliability([1, 0, 1, 0, 1], [0.2] * 5, bins=2)
    assert counted.tolist() == [3, 2] and means == pytest.approx([0.2, 0.2]) and shares == pytest.approx([2 / 3, 1 / 2])
    assert reliability([1, 0], [0.9, 0.1], bins=10)[2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([4, 1, 3, 2], 2, [1, 0, 1, 0]),
        ([0, 0, 0, 0, 0, 0, 1, 2, 3, 9], 5, [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]),  # cuts at 0, 0, .4 and 2.2
        ([7, 7, 7], 5, [0, 0, 0]),
        ([5], 3, [0]),
    ],
)
def test_quantile_bins_by_hand(values: list[int], bins: int, expected: list[int]) -> None:
    assert quantile_bin(values, bins).tolist() == expected


def test_quantile_bins_without_ties_are_those_of_pandas() -> None:
    values = np.random.default_rng(2).permutation(997)
    assert quantile_bin(values, 7).tolist() == pd.qcut(values, 7, labels=False).tolist()
