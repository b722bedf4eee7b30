"""What is made of an experiment's predictions: tables, means and differences."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pretend
import pytest
from experiments import addressed, experiment, with_system
from pages import EXPERIMENT_FIGURES
from sklearn import metrics as reference

from rayrec import storage
from rayrec.data.columns import PREDICTIONS_SCHEMA
from rayrec.experiment import study
from rayrec.experiment.pairs import variants
from rayrec.experiment.results import COMPARED, Told, summarise
from rayrec.experiment.running import Failures
from rayrec.experiment.settings import Experiment
from rayrec.report import ExperimentReportData, write_experiment_report


def invented(of: Experiment, strength: Mapping[str, float]) -> dict[str, dict[int, pd.DataFrame]]:
    """Predictions of the same rows; the stronger a title, the better."""
    generator = np.random.default_rng(3)
    user = np.sort(generator.integers(0, 60, 900))
    taste = generator.normal(0, 1, 900)
    columns = {"user_id": user, "item_id": generator.integers(1, 90, 900), "label": (taste > 0).astype(np.int8)}
    warm = generator.random(900) < 0.7
    slices = {"is_warm": warm, "is_strict_cold": ~warm & (generator.random(900) < 0.3)}
    return {
        title: {
            seed: pd.DataFrame(
                columns | {"score": 1 / (1 + np.exp(-strength[title] * taste - generator.normal(0, 1, 900)))} | slices
            )[PREDICTIONS_SCHEMA.names]
            for seed in of.seeds(title)
        }
        for title in of.config.systems
    }


STRENGTH = {"Floor": 0.1, "SASRec": 0.5, "MF": 0.52, "Mapper only": 1.5}


def all_told(predictions: Mapping[str, Mapping[int, pd.DataFrame]]) -> dict[str, Told]:
    return {title: Told(predictions=frames, failures={}) for title, frames in predictions.items()}


def test_the_numbers_follow_from_the_predictions(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    predictions = invented(of, STRENGTH)
    results = summarise(of, all_told(predictions), "all of them")

    def recomputed(frame: pd.DataFrame) -> dict[str, float]:
        label, score = frame["label"], frame["score"]
        users = [rows for _, rows in frame.groupby("user_id") if rows["label"].nunique() == 2]
        return {
            "auc": reference.roc_auc_score(label, score),
            "uauc": np.mean([reference.roc_auc_score(rows["label"], rows["score"]) for rows in users]),
            "log_loss": reference.log_loss(label, score),
            "accuracy": reference.accuracy_score(label, score >= 0.5),
            "f1": reference.f1_score(label, score >= 0.5),
        }

    sums = {}
    for title, frames in predictions.items():
        shown = results["systems"][title]
        for part, chosen in (("all", lambda f: f), ("cold", lambda f: f[~f.is_warm])):
            each = pd.DataFrame([recomputed(chosen(frame)) for frame in frames.values()])
            for name in COMPARED:
                found = shown["slices"][part]["metrics"][name]
                assert found["mean"] == pytest.approx(each[name].mean(), abs=1e-12)
                assert list(found["seeds"].values()) == pytest.approx(each[name].tolist(), abs=1e-12)
                assert (found["sd"] is None) == (title == "Floor")
                if len(each) > 1:
                    assert found["sd"] == pytest.approx(each[name].std(), abs=1e-12)  # pandas divides by n - 1
            sums[title, part] = each["auc"].mean() + each["uauc"].mean()
    for title in predictions:
        gain = sums[title, "all"] / sums["SASRec", "all"] - 1
        assert results["systems"][title]["relative_improvement"] == pytest.approx(gain, abs=1e-12)
    assert results["systems"]["SASRec"]["slices"]["all"]["minus_reference"] == {}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_only_a_clear_lead_is_the_best(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    clear = summarise(of, all_told(invented(of, STRENGTH)), "")["best"]["all"]
    assert {name: found["title"] for name, found in clear.items()} == dict.fromkeys(COMPARED, "Mapper only")
    assert clear["auc"]["is_significant"] and clear["auc"]["difference"]["low"] > 0
    assert clear["log_loss"]["is_significant"] and clear["log_loss"]["difference"]["high"] < 0
    close = summarise(of, all_told(invented(of, STRENGTH | {"Mapper only": 0.5})), "")["best"]["all"]
    assert not close["auc"]["is_significant"] and close["auc"]["difference"]["p"] >= 0.05


def report(of: Experiment, results: Mapping[str, Any]) -> ExperimentReportData:
    shown: dict[str, Any] = {"config_yaml": "", "versions": {"rayrec": "1"}, "notes": ["One."]}
    return ExperimentReportData(title="e", results=results, evidence=pretend.NO_EVIDENCE, **shown)


def test_bold_is_for_the_clear_lead(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    for strength, bold in ((STRENGTH, True), (STRENGTH | {"Mapper only": 0.5}, False)):
        results = summarise(of, all_told(invented(of, strength)), "")
        write_experiment_report(report(of, results), tmp_path / str(bold))
        text = (tmp_path / str(bold) / "tables" / "results.md").read_text()
        auc = f"{results['systems']['Mapper only']['slices']['all']['metrics']['auc']['mean']:.4f}"
        assert (f"| Mapper only | **{auc} ±" in text) is bold and (f"| Mapper only | {auc} ±" in text) is not bold


def test_what_failed_is_told_and_the_rest_counts(tmp_path: Path) -> None:
    of = experiment(tmp_path)
    predictions = invented(of, STRENGTH)
    told = all_told(predictions) | {
        "MF": Told(predictions={1: predictions["MF"][1]}, failures={0: "the loss diverged"}),
        "SASRec": Told(predictions={}, failures={0: "gone", 1: "gone"}),
    }
    results = summarise(of, told, "")
    assert results["systems"]["MF"]["failures"] == {"0": "the loss diverged"}
    mf = results["systems"]["MF"]["slices"]["all"]["metrics"]["auc"]
    assert mf["sd"] is None and mf["mean"] == pytest.approx(
        reference.roc_auc_score(predictions["MF"][1]["label"], predictions["MF"][1]["score"]), abs=1e-12
    )
    assert all(row["relative_improvement"] is None for row in results["systems"].values())  # the reference is gone
    page = write_experiment_report(report(of, results), tmp_path / "report").read_text()
    assert "the loss diverged" in page and ">1 of 2" in page and ">0 of 2" in page and "nan<" not in page


def test_an_ensembles_weights_are_told(tmp_path: Path) -> None:
    of = experiment(tmp_path, with_system("Pool", {"system": "ensemble"}))
    predictions = invented(of, STRENGTH | {"Pool": 1.0})
    weights = {seed: {"sasrec": 0.25, "tallrec": 0.0, "sasrecllm": 0.75} for seed in (0, 1)}
    told = all_told(predictions) | {"Pool": Told(predictions=predictions["Pool"], failures={}, chosen=weights)}
    results = summarise(of, told, "")
    assert results["systems"]["Pool"]["weights"] == {"0": weights[0], "1": weights[1]}
    assert results["systems"]["Pool"]["is_trained"] and "weights" not in results["systems"]["SASRec"]
    page = write_experiment_report(report(of, results), tmp_path / "report").read_text()
    assert "seed 1: 0.25 sasrec + 0.00 tallrec + 0.75 sasrecllm" in page
    assert any("weights were chosen on the validation rows" in note for note in study._notes(of))


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what belongs to a title that is no more goes."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    values = {"storage": str(tmp_path / "runs"), "evaluation.users": None}
    of = experiment(tmp_path, {"set": values, **with_system("Pool", {"system": "ensemble"})})
    pairs = list(addressed(of).values())
    predictions = invented(of, STRENGTH | {"Pool": 1.0})
    rows = predictions["Floor"][0].drop(columns="score").assign(seen=np.arange(900) % 7)
    for variant in variants(of):
        pretend.write_rows(variant.data.folder, rows, [1, 1, 2, 5])
    for pair in pairs:
        pretend.finish(pair, predictions[pair.title][pair.seed])
    folder = tmp_path / "runs" / "e"

    def written() -> dict[str, bytes]:
        study._write(of, pairs, Failures(), str(folder))
        files = {path for path in folder.rglob("*") if path.is_file() and "pairs" not in path.parts}
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    first = written()
    wanted = {
        f"report/tables/{name}.{kind}" for name in ("results", "differences", "slices") for kind in ("csv", "md", "tex")
    }
    wanted |= {f"report/figures/{name}.svg" for name in EXPERIMENT_FIGURES}
    wanted |= {f"report/tables/{name}.csv" for name in EXPERIMENT_FIGURES - {"cold_warm"}}
    wanted |= {"predictions/floor/0.parquet", "predictions/mapper-only/1.parquet", "results.json", "report/index.html"}
    wanted |= {f"predictions/pool/{seed}.{kind}" for seed in (0, 1) for kind in ("parquet", "json")}
    assert wanted <= set(first)
    assert not any(b"<dc:date>" in content for content in first.values())
    assert json.loads(first["predictions/pool/1.json"]) == {"sasrec": 0.5, "sasrecllm": 0.5}
    systems = json.loads(first["results.json"])["systems"]
    assert systems["Pool"]["weights"]["0"] == {"sasrec": 0.0, "sasrecllm": 1.0}
    one = pretend.STEPS * pretend.SECONDS
    assert systems["Floor"]["cost"] == {"parameters": 0, "seconds": {"0": {}}}
    assert systems["MF"]["cost"]["seconds"] == {"0": {"pretrain_encoder": one}, "1": {"pretrain_encoder": one}}
    for title in ("Mapper only", "Pool"):  # an ensemble's members are trained once each
        stages = ["pretrain_encoder", "tune_lora", "tune_hybrid"]
        assert systems[title]["cost"]["seconds"]["1"] == dict.fromkeys(stages, one)
        assert systems[title]["cost"]["parameters"] == 3 * pretend.PARAMETERS  # encoder, LoRA, mapper
    by_popularity = pd.read_csv(io.BytesIO(first["report/tables/auc_by_popularity.csv"]))
    assert by_popularity["low"].min() == 0 and by_popularity["high"].max() == 2  # item 1 has two training rows

    storage.write_text(f"{folder}/predictions/old-title/0.parquet", "")
    storage.write_text(f"{folder}/predictions/mf/9.parquet", "")
    assert written() == first
