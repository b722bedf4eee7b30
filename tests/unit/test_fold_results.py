"""Means, spreads and differences of all folds."""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pretend
import pytest
from folded import PLAIN, TWO, addressed, experiment
from pages import assert_ids_are_unique, assert_needs_no_network
from sklearn import metrics as reference

from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.experiment import study
from rayrec.experiment.folds import summarise_folds
from rayrec.experiment.pairs import variants
from rayrec.experiment.results import COMPARED, Told, summarise
from rayrec.experiment.running import Failures
from rayrec.experiment.settings import Experiment
from rayrec.metrics import mean_of_folds, pooled_deviation, pooled_difference, resampled_mean
from rayrec.report import ExperimentReportData, write_experiment_report

Scores = npt.NDArray[np.float64]
Predictions = dict[int | None, dict[str, dict[int, pd.DataFrame]]]  # fold -> title -> seed


def pairs_won(label: npt.NDArray[Any], score: Scores) -> float:
    """AUC: each like against each dislike."""
    above = score[label == 1][:, None] - score[label == 0]
    return float(((above > 0) + (above == 0) / 2).mean())


def metrics_of(user: npt.NDArray[Any], label: npt.NDArray[Any], score: Scores, cutoff: float = 0.5) -> Scores:
    """COMPARED, the slow way."""
    groups = [np.flatnonzero(user == one) for one in np.unique(user)]
    both = [group for group in groups if len(set(label[group])) == 2]
    each = [
        pairs_won(label, score),
        np.mean([pairs_won(label[group], score[group]) for group in both]),
        reference.log_loss(label, score),
        reference.accuracy_score(label, score >= cutoff),
        reference.f1_score(label, score >= cutoff),
    ]
    return np.array(each)


def test_pooled_differences_equal_those_of_a_slow_loop() -> None:
    """Users of all folds are drawn one by one, each with its rows of every fold, a user drawn twice as two."""
    draw = np.random.default_rng(11)
    folds = []
    for users, count in (((0, 9), 130), ((5, 16), 170), ((2, 12), 90)):
        label = draw.integers(0, 2, count)
        folds.append((3 * draw.integers(*users, count), label))
    seeds = (2, 3)  # of system and other
    scores = [
        [np.clip(0.3 * label + draw.normal(0.35, 0.3, len(label)), 0, 1) for _ in range(sum(seeds))]
        for _, label in folds
    ]
    population = np.unique(np.concatenate([user for user, _ in folds]))

    def difference(drawn: npt.NDArray[Any]) -> Scores:
        of_folds = []
        for (user, label), scored in zip(folds, scores, strict=True):
            parts = [np.flatnonzero(user == one) for one in drawn]
            copies = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            rows = np.concatenate(parts)
            each = [metrics_of(copies, label[rows], score[rows], 0.4) for score in scored]
            of_folds.append(np.mean(each[: seeds[0]], axis=0) - np.mean(each[seeds[0] :], axis=0))
        return np.mean(of_folds, axis=0)

    numbers = np.random.default_rng(4).integers(len(population), size=(25, len(population)))
    draws = np.array([difference(population[one]) for one in numbers])
    whole = difference(population)
    pooled = [
        mean_of_folds(
            [
                resampled_mean(user, label, scored[part], cutoff=0.4, resamples=25, seed=4, population=population)
                for (user, label), scored in zip(folds, scores, strict=True)
            ]
        )
        for part in (slice(seeds[0]), slice(seeds[0], None))
    ]
    found = pooled_difference(*pooled)
    for name, value, column in zip(COMPARED, whole, draws.T, strict=True):
        assert found[name].value == pytest.approx(value, abs=1e-12), name
        assert found[name][1:3] == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=1e-12), name
        tail = min((column <= 0).sum(), (column >= 0).sum())
        assert found[name].p == pytest.approx(min(1, 2 * (1 + tail) / 26)), name


def test_a_user_of_several_folds_widens_the_interval() -> None:
    """The same rows twice say nothing new; as two strangers they would."""
    draw = np.random.default_rng(2)
    user, label = np.repeat(np.arange(80), 6), draw.integers(0, 2, 480)
    good, bad = (np.clip(label * k + draw.normal(0.3, 0.3, 480), 0, 1) for k in (0.4, 0.1))

    def width(users: list[npt.NDArray[Any]]) -> float:
        population = np.concatenate(users)
        systems = [
            mean_of_folds([resampled_mean(one, label, [score], population=population) for one in users])
            for score in (good, bad)
        ]
        found = pooled_difference(*systems)["auc"]
        return found.high - found.low

    alone = pooled_difference(*(resampled_mean(user, label, [score]) for score in (good, bad)))["auc"]
    assert width([user, user]) == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert width([user, user + 1000]) < 0.8 * width([user, user])


def test_what_a_fold_leaves_undefined_stays_so() -> None:
    many = resampled_mean([1, 1, 2, 2], [0, 1, 0, 1], [[0.1, 0.9, 0.2, 0.8]], resamples=30, population=[1, 2, 3])
    single = resampled_mean([3, 3], [0, 1], [[0.1, 0.9]], resamples=30, population=[1, 2, 3])
    likes = resampled_mean([1, 2], [1, 1], [[0.1, 0.9]], resamples=30, population=[1, 2, 3])
    assert mean_of_folds([many, single]).values["auc"] == 1 and not len(mean_of_folds([many, single]).draws["auc"])
    both = mean_of_folds([many, likes])
    assert math.isnan(both.values["auc"]) and not math.isnan(both.values["accuracy"])
    assert len(both.draws["auc"]) == 30 and np.isnan(both.draws["auc"]).all()
    with pytest.raises(ValueError, match="a row's user is not in the population"):
        resampled_mean([1, 4], [0, 1], [[0.1, 0.9]], population=[1, 2, 3])


def test_a_pooled_deviation_by_hand() -> None:
    assert pooled_deviation([[1, 3], [10, 10, 13]]) == pytest.approx(math.sqrt((2 + 6) / 3))
    assert pooled_deviation([[0.2, 0.5, 0.9]]) == pytest.approx(np.std([0.2, 0.5, 0.9], ddof=1))
    assert math.isnan(pooled_deviation([[1], [2]]))


STRENGTH = {"Floor": 0.1, "SASRec": 0.5, "MF": 1.2}


def invented(of: Experiment) -> Predictions:
    """Predictions of rows that differ from fold to fold, with users in common; the stronger a title, the better."""
    draw = np.random.default_rng(3)
    predictions: Predictions = {}
    for number, fold in enumerate(of.each_fold):
        count = 500 + 100 * number
        taste, warm = draw.normal(0, 1, count), draw.random(count) < 0.7
        columns = {
            "user_id": np.sort(draw.integers(10 * number, 40 + 10 * number, count)),
            "item_id": draw.integers(1, 90, count),
            "label": (taste > 0).astype(np.int8),
            "is_warm": warm,
            "is_strict_cold": ~warm & (draw.random(count) < 0.4),
        }
        predictions[fold] = {
            title: {
                seed: pd.DataFrame(
                    columns | {"score": 1 / (1 + np.exp(-STRENGTH[title] * taste - draw.normal(0, 1, count)))}
                )[PREDICTIONS_SCHEMA.names]
                for seed in of.seeds(title)
            }
            for title in of.config.systems
        }
    return predictions


def all_told(predictions: Predictions) -> dict[int | None, dict[str, Told]]:
    return {
        fold: {title: Told(predictions=frames, failures={}) for title, frames in titles.items()}
        for fold, titles in predictions.items()
    }


SAMPLES: dict[int | None, str] = {1: "all rows.", 2: "some rows."}


def test_the_numbers_follow_from_the_predictions_of_all_folds(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    predictions = invented(of)
    results = summarise_folds(of, all_told(predictions), SAMPLES)
    slices = {
        "all": lambda f: f,
        "warm": lambda f: f[f.is_warm],
        "cold": lambda f: f[~f.is_warm],
        "strict_cold": lambda f: f[f.is_strict_cold],
    }
    means: dict[tuple[str, str], Scores] = {}
    for title in of.config.systems:
        for part, chosen in slices.items():
            shown, folds, squares = results["systems"][title]["slices"][part], [], 0.0
            for fold in (1, 2):
                frames = [chosen(frame) for frame in predictions[fold][title].values()]
                each = [metrics_of(f.user_id.to_numpy(), f.label.to_numpy(), f.score.to_numpy()) for f in frames]
                own = results["folds"][str(fold)]["systems"][title]["slices"][part]["metrics"]
                assert [own[name]["mean"] for name in COMPARED] == pytest.approx(np.mean(each, axis=0), abs=1e-12)
                folds.append(np.array(each))
                squares += ((folds[-1] - folds[-1].mean(axis=0)) ** 2).sum(axis=0)
            means[title, part] = np.mean([one.mean(axis=0) for one in folds], axis=0)
            assert [shown["metrics"][name]["mean"] for name in COMPARED] == pytest.approx(means[title, part], abs=1e-12)
            if title == "Floor":
                assert shown["metrics"]["auc"]["sd"] is None
            else:
                spread = np.sqrt(squares / 2)  # two folds of two seeds
                assert [shown["metrics"][name]["sd"] for name in COMPARED] == pytest.approx(spread, abs=1e-12)
            by_seed = np.mean(folds, axis=0)[:, 0]
            assert list(shown["metrics"]["auc"]["seeds"].values()) == pytest.approx(by_seed, abs=1e-12)
            counted = sum(len(chosen(predictions[fold][title][0])) for fold in (1, 2))
            assert shown["counts"]["rows"] == counted
            if title != "SASRec":
                gain = [shown["minus_reference"][name]["value"] for name in COMPARED]
                own_gain = [
                    [
                        results["folds"][f]["systems"][title]["slices"][part]["minus_reference"][n]["value"]
                        for n in COMPARED
                    ]
                    for f in ("1", "2")
                ]
                assert gain == pytest.approx(np.mean(own_gain, axis=0), abs=1e-12)
    sums = {title: means[title, "all"][:2].sum() for title in of.config.systems}
    assert results["systems"]["MF"]["relative_improvement"] == pytest.approx(sums["MF"] / sums["SASRec"] - 1, abs=1e-12)
    assert results["best"]["all"]["auc"]["title"] == "MF" and results["best"]["all"]["auc"]["is_significant"]
    assert results["sample"] == "fold 1: all rows; fold 2: some rows"
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_all_folds_have_equal_weight_and_one_draw_of_users(tmp_path: Path) -> None:
    """The differences of a slice, out of ``resampled_mean``, with the slice's users in any fold as the population."""
    of = experiment(tmp_path)
    predictions = invented(of)
    results = summarise_folds(of, all_told(predictions), SAMPLES)
    cold = {
        title: [{seed: f[~f.is_warm] for seed, f in predictions[fold][title].items()} for fold in (1, 2)]
        for title in ("MF", "SASRec")
    }
    population = sorted(
        {user for folds in cold.values() for frames in folds for f in frames.values() for user in f.user_id}
    )
    pooled = [
        mean_of_folds(
            [
                resampled_mean(
                    frames[0].user_id,
                    frames[0].label,
                    [f.score for f in frames.values()],
                    resamples=200,
                    population=population,
                )
                for frames in cold[title]
            ]
        )
        for title in ("MF", "SASRec")
    ]
    expected = pooled_difference(*pooled)["uauc"]._asdict()
    assert results["systems"]["MF"]["slices"]["cold"]["minus_reference"]["uauc"] == expected


def report(results: Mapping[str, Any]) -> ExperimentReportData:
    shown: dict[str, Any] = {"config_yaml": "", "versions": {"rayrec": "1"}, "notes": ["One."]}
    return ExperimentReportData(title="e", results=results, evidence=pretend.NO_EVIDENCE, **shown)


def test_what_failed_in_a_fold_is_told_and_has_no_mean(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    told = all_told(invented(of))
    mf = told[2]["MF"].predictions
    told[2]["MF"] = Told(predictions={}, failures={0: "the loss diverged", 1: "no memory"})
    told[1]["SASRec"] = Told(predictions={1: told[1]["SASRec"].predictions[1]}, failures={0: "gone"})
    results = summarise_folds(of, told, SAMPLES)
    row = results["systems"]["MF"]
    assert row["failures"] == {"0": "fold 2: the loss diverged", "1": "fold 2: no memory"} and row["seeds"] == []
    assert row["slices"]["all"] == {"counts": {}, "metrics": {}, "minus_reference": {}}
    assert results["folds"]["1"]["systems"]["MF"]["slices"]["all"]["metrics"]["auc"]["mean"] > 0.5
    sasrec = results["systems"]["SASRec"]
    assert sasrec["seeds"] == [1] and sasrec["failures"] == {"0": "fold 1: gone"}
    each = [
        results["folds"][fold]["systems"]["SASRec"]["slices"]["all"]["metrics"]["auc"]["mean"] for fold in ("1", "2")
    ]
    assert sasrec["slices"]["all"]["metrics"]["auc"]["mean"] == pytest.approx(np.mean(each), abs=1e-12)
    assert results["best"]["all"]["auc"]["title"] == "SASRec"  # MF is in no mean
    page = write_experiment_report(report(results), tmp_path / "report").read_text()
    assert "fold 2: the loss diverged" in page and ">0 of 2" in page and "nan<" not in page
    text = (tmp_path / "report" / "tables" / "results.md").read_text()
    assert "| MF | – | –" in text and len(mf) == 2


def test_the_folds_have_a_table_of_their_own(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    results = summarise_folds(of, all_told(invented(of)), SAMPLES)
    page = write_experiment_report(report(results), tmp_path).read_text()
    assert '<h2 id="folds">Folds</h2>' in page and "training seeds 0, 1; 2 folds; compared" in page
    assert_needs_no_network(page)
    assert_ids_are_unique(page)
    assert {path.suffix for path in (tmp_path / "tables").glob("folds.*")} == {".csv", ".md", ".tex"}
    table = pd.read_csv(tmp_path / "tables" / "folds.csv")
    assert len(table) == 2 * 4 * 3  # folds, slices, titles
    first = table[(table.fold == 2) & (table.slice == "warm") & (table.title == "MF")].iloc[0]
    shown = results["folds"]["2"]["systems"]["MF"]["slices"]["warm"]
    assert first.auc == shown["metrics"]["auc"]["mean"] and first.rows == shown["counts"]["rows"]
    text = (tmp_path / "tables" / "folds.md").read_text()
    mean = f"{results['folds']['2']['systems']['MF']['slices']['all']['metrics']['auc']['mean']:.4f}"
    assert f"|  | MF | **{mean} ±" in text and "| 2 | Floor |" in text
    assert "Mean over 2 folds ± standard deviation" in (tmp_path / "tables" / "results.md").read_text()
    assert "Rows and users are summed over folds." in (tmp_path / "tables" / "slices.tex").read_text()


def test_without_folds_nothing_is_told_of_them(tmp_path: Path) -> None:
    of = experiment(tmp_path, {})
    told = all_told(invented(of))
    results = summarise_folds(of, told, {None: "all"})
    assert results == summarise(of, told[None], "all") and "folds" not in results
    page = write_experiment_report(report(results), tmp_path / "report").read_text()
    assert "fold" not in page.lower().replace("scaffold", "")
    assert not list((tmp_path / "report" / "tables").glob("folds.*"))


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    of = experiment(tmp_path, TWO | {"evaluation.users": None})
    pairs, predictions = addressed(of), invented(of)
    for variant in variants(of):
        rows = predictions[variant.fold]["Floor"][0].drop(columns="score")
        pretend.write_rows(variant.data.folder, rows.assign(seen=np.arange(len(rows)) % 5), [1, 1, 2])
    for pair in pairs:
        pretend.finish(pair, predictions[pair.fold][pair.title][pair.seed])
    monkeypatch.setattr(study, "describe_sample", lambda run: run.config.name)
    folder = tmp_path / "runs" / "e"

    def written() -> dict[str, bytes]:
        study._write(of, pairs, Failures(), str(folder))
        files = {path for path in folder.rglob("*") if path.is_file() and "pairs" not in path.parts}
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    first = written()
    names = {f"fold-{fold}-seed-{seed}.parquet" for fold in (1, 2) for seed in (0, 1)}
    assert {name.rpartition("/")[2] for name in first if name.startswith("predictions/mf/")} == names
    results = json.loads(first["results.json"])
    assert results["sample"] == "fold 1: e-floor-0-fold-1; fold 2: e-floor-0-fold-2"
    assert "split:\n      folds: 2\n" in first["report/index.html"].decode()
    seconds = {"pretrain_encoder": pretend.STEPS * pretend.SECONDS}  # a mean over folds
    assert results["systems"]["MF"]["cost"] == {
        "parameters": pretend.PARAMETERS,
        "seconds": {"0": seconds, "1": seconds},
    }
    curves = pd.read_csv(io.BytesIO(first["report/tables/training.csv"]))
    assert set(zip(curves["fold"], curves["seed"], strict=True)) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert written() == first


def test_an_ensemble_pools_and_is_weighed_fold_by_fold(tmp_path: Path) -> None:
    systems = PLAIN["systems"] | {"MF": {"system": "ensemble"}}
    of = experiment(tmp_path, systems=systems)
    pairs = {(pair.title, pair.seed, pair.fold): pair for pair in addressed(of)}
    for fold in (1, 2):
        members = pairs["MF", 1, fold].members
        assert members[0].fingerprint == pairs["SASRec", 1, fold].fingerprint
        assert {member.run.data.folder for member in members} == {pairs["MF", 1, fold].run.data.folder}
    told = all_told(invented(of))
    for fold, one in told.items():
        assert fold is not None
        weights = {seed: {"sasrec": 1 / fold, "tallrec": 0.0, "sasrecllm": 1 - 1 / fold} for seed in (0, 1)}
        one["MF"] = Told(predictions=one["MF"].predictions, failures={}, chosen=weights)
    results = summarise_folds(of, told, SAMPLES)
    assert results["folds"]["2"]["systems"]["MF"]["weights"]["1"] == {"sasrec": 0.5, "tallrec": 0.0, "sasrecllm": 0.5}
    assert "weights" not in results["systems"]["MF"] and "weights" not in results["folds"]["1"]["systems"]["SASRec"]
