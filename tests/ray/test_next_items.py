"""Next items as a person runs them: from sources to a report, and the same command again."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import processes
import pytest
import safetensors.numpy
import torch
from conftest import CANDIDATES, NEXT_ITEMS, RERANKED, Pipeline
from pages import assert_needs_no_network

from rayrec.data.catalogue import training_counts
from rayrec.data.rows import RowSource
from rayrec.evaluation import sample, scoring
from rayrec.recommendation.plan import open_run
from rayrec.stages import Part, StageName, Stream
from rayrec.systems import SYSTEMS as TABLE
from rayrec.systems import SystemName
from rayrec.training.lists import Lister
from rayrec.training.model import scoring_model

SYSTEMS = {
    "most_popular": "MostPopular",
    "sknn": "SKNN",
    "v_sknn": "V-SKNN",
    "llmseqsim": "LLMSeqSim",
    "embedding_ensemble": "EmbeddingEnsemble",
    "llmseqsim_popularity": "LLMSeqSim&Popularity",
    "sasrec": "SASRec",
    "llmseqsim_sequential": "LLMSeqSim&SASRec",
    "sasrecllm": "SASRecLLM",
}
BY_NAME = {"llmseqsim", "embedding_ensemble", "llmseqsim_popularity", "llmseqsim_sequential"}  # who list unseen items
KS = (5, 20)
SCORED = {"sasrec", "sasrecllm"}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def options(next_items: Pipeline) -> list[str]:
    return next_items.options


@pytest.fixture(scope="module")
def finished(next_items: Pipeline) -> processes.Finished:
    return next_items.finished.checked()


@pytest.fixture(scope="module")
def folder(finished: processes.Finished, next_items: Pipeline) -> Path:
    return next_items.folder


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def test_it_ends_with_a_table(finished: processes.Finished, metrics: dict[str, Any]) -> None:
    assert re.search(r"^pretrain_encoder  54 steps in .*; best valid NDCG@20 0\.\d{4} at step \d+", finished.out, re.M)
    for stage in ("tune_lora", "tune_hybrid"):
        assert re.search(rf"^{stage}  8 steps in .*; best valid AUC 0\.\d{{4}} at step \d+", finished.out, re.M)
    assert re.search(r"^ +NDCG@20 +HR@20 +MRR@20 +coverage@20 +sessions$", finished.out, re.M)
    for system, title in SYSTEMS.items():
        shown = [metrics[system]["all"]["metrics"][f"{name}@20"]["value"] for name in ("ndcg", "hr", "mrr", "coverage")]
        (line,) = re.findall(rf"^{re.escape(title)} +(.*)$", finished.out, re.M)
        sessions = metrics[system]["all"]["counts"]["sessions"]
        assert line.split() == [*(f"{value:.4f}" for value in shown), str(sessions)]
        assert (sessions == RERANKED) == (system == "sasrecllm")


def test_lists_are_of_the_whole_catalogue_without_what_the_session_holds(folder: Path) -> None:
    users = pd.read_parquet(folder / "data" / "users.parquet").set_index("user_id")["liked"]
    test = pd.read_parquet(folder / "data" / "test.parquet")
    trained = {item for liked in users for item in liked[:-2]}
    for system in SYSTEMS:
        frame = pd.read_parquet(folder / "predictions" / f"{system}.parquet")
        rows = test[test["user_id"].isin(frame["user_id"])] if system == "sasrecllm" else test
        assert frame["user_id"].tolist() == rows["user_id"].tolist()
        assert [held.tolist() for held in frame["held_out"]] == [[item] for item in rows["item_id"]]
        for user, ranked in zip(frame["user_id"], frame["ranked"], strict=True):
            assert 0 < len(ranked) == len({*ranked}) <= 20 and not {*ranked} & {*users[user][:-1]}
            assert system in BY_NAME or {*ranked} <= trained
        if system in SCORED:
            assert all((np.diff(scores) <= 1e-4).all() and len(scores) == 20 for scores in frame["scores"])
        else:
            assert frame["scores"].isna().all()


def test_a_language_model_puts_the_encoders_best_in_order(folder: Path) -> None:
    """The encoder that was trained on next items finds them, and not the one that learned on below the prompts."""
    run = open_run(str(folder), [])
    job = scoring.scoring_job(run, TABLE[SystemName.SASREC])
    assert job.parts[Part.ENCODER] == run.part_folder(StageName.PRETRAIN_ENCODER, Part.ENCODER)
    lister = Lister(scoring_model(job), training_counts(run.data.folder), run.config, torch.device("cpu"))
    rows = RowSource(run.data.folder, "test", Stream.INTERACTIONS, run.facts.max_len).open()
    ids = sample.judged_rows(run, SystemName.SASRECLLM, sample.test_sample(run))
    candidates, _ = lister.rank(rows, ids, CANDIDATES)
    frame = pd.read_parquet(folder / "predictions" / "sasrecllm.parquet")
    assert frame["user_id"].tolist() == rows.user_ids[ids].tolist() and len(frame) == RERANKED
    found = [({*ranked}, best) for ranked, best in zip(frame["ranked"], candidates.tolist(), strict=True)]
    assert all(ranked <= {*best} for ranked, best in found)
    assert not all(ranked <= {*best[:20]} for ranked, best in found)
    assert all(((scores > 0) & (scores < 1)).all() and (np.diff(scores) <= 0).all() for scores in frame["scores"])
    asked = pd.read_parquet(folder / "data" / "asked" / "train.parquet")
    users = pd.read_parquet(folder / "data" / "users.parquet").set_index("user_id")["liked"]
    assert asked["label"].tolist() == [1, 0] * (len(asked) // 2)
    drawn = asked[["user_id", "item_id", "seen"]].to_numpy()[1::2]
    assert not any(item in users[user][: seen + 1] for user, item, seen in drawn)


def test_a_hybrid_asks_the_encoder_behind_popular_items(folder: Path) -> None:
    users = pd.read_parquet(folder / "data" / "users.parquet").set_index("user_id")["liked"]
    held = pd.Series([item for liked in users for item in {*liked[:-2]}]).value_counts()
    told = json.loads((folder / "predictions" / "llmseqsim_sequential.json").read_text())
    assert told["quantile"] in (0.25, 0.5, 0.75) and 0 < told["valid_ndcg"] < 1
    popular = {*held[held >= held.quantile(told["quantile"])].index}
    found = {
        system: pd.read_parquet(folder / "predictions" / f"{system}.parquet").set_index("user_id")["ranked"]
        for system in ("sasrec", "llmseqsim", "llmseqsim_sequential")
    }
    for user, liked in users.items():
        member = "sasrec" if liked[-2] in popular else "llmseqsim"
        assert found["llmseqsim_sequential"][user].tolist() == found[member][user].tolist()


def test_metrics_are_those_of_the_lists(folder: Path, metrics: dict[str, Any]) -> None:
    items = len(pd.read_parquet(folder / "data" / "items.parquet"))
    assert [*metrics] == [*SYSTEMS]
    for system, slices in metrics.items():
        frame = pd.read_parquet(folder / "predictions" / f"{system}.parquet")
        found = slices["all"]["metrics"]
        assert slices["all"]["counts"]["sessions"] == len(frame)
        for k in KS:
            ndcg, hits, reciprocal, covered = [], [], [], set()
            for ranked, held in zip(frame["ranked"], frame["held_out"], strict=True):
                place = 0
                for number, item in enumerate(ranked[:k], 1):
                    covered.add(item)
                    if item == held[0]:
                        place = number
                ndcg.append(1 / math.log2(place + 1) if place else 0)
                hits.append(place > 0)
                reciprocal.append(1 / place if place else 0)
            for name, values in (("ndcg", ndcg), ("hr", hits), ("mrr", reciprocal)):
                assert found[f"{name}@{k}"]["value"] == pytest.approx(sum(values) / len(values))
                assert found[f"{name}@{k}"]["low"] <= found[f"{name}@{k}"]["value"] <= found[f"{name}@{k}"]["high"]
            assert found[f"coverage@{k}"]["value"] == pytest.approx(len(covered) / items)
    of = {system: slices["all"]["metrics"]["ndcg@20"]["value"] for system, slices in metrics.items()}
    assert of["sasrec"] > of["most_popular"]  # what follows follows from the last item


def test_validation_chose_the_part_that_was_kept(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "stages/pretrain_encoder/progress.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["valid_ndcg"] for line in lines if "valid_ndcg" in line}
    card = json.loads((folder / "parts/pretrain_encoder/encoder/part.json").read_text())
    assert len(judged) == 6 and card["valid_ndcg"] == max(judged.values()) == judged[card["step"]]
    assert all(0 <= line["valid_hr"] <= 1 for line in lines if "valid_hr" in line)


def test_the_report_needs_no_network(folder: Path) -> None:
    page = (folder / "report" / "index.html").read_text()
    assert_needs_no_network(page)
    assert all(html.escape(title) in page for title in SYSTEMS.values()) and "The data is generated" in page


def test_again_there_is_nothing_to_do(
    finished: processes.Finished, folder: Path, options: list[str], job_env: dict[str, str], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    nowhere = job_env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    again = processes.run(processes.job("full_pipeline", *options), nowhere, tmp_path).checked()
    assert "all stages are complete; nothing to do" in again.out
    shown = len(SYSTEMS) + 2
    assert again.out.splitlines()[-shown:] == finished.out.splitlines()[-shown:]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.full
def test_items_start_from_their_names(
    folder: Path, options: list[str], job_env: dict[str, str], tmp_path: Path
) -> None:
    values = ("name=names", "encoder.initial={names: pca}", "cluster.workers=1", "ranking.sasrecllm=null")
    own = [*options, *(option for value in values for option in ("--set", value))]
    plan = processes.run(processes.job("full_pipeline", *own, "--plan"), job_env, tmp_path / "plan").checked()
    assert "no backbone" in plan.out and "tune_lora" not in plan.out
    done = processes.run(processes.job("full_pipeline", *own), job_env, tmp_path / "log").checked()
    assert re.search(r"^LLM2SASRec +0\.\d{4}", done.out, re.M)
    names = folder.parent / "names"
    assert re.search(r"^LLMSeqSim&LLM2SASRec +0\.\d{4}", done.out, re.M)
    for system in SYSTEMS.keys() - SCORED - {"llmseqsim_sequential"}:  # what is not trained is the same
        one, other = (path / "predictions" / f"{system}.parquet" for path in (folder, names))
        assert one.read_bytes() == other.read_bytes()
    (table,) = (
        path
        for path in (folder.parent / "store" / "name_tables").glob("*/embeddings.safetensors")
        if safetensors.numpy.load_file(path)["vector"].shape[1] == 32
    )
    rows = safetensors.numpy.load_file(table)["vector"]
    drawn, started = (
        safetensors.numpy.load_file(path / "parts/pretrain_encoder/encoder/model.safetensors")["item.weight"][1:]
        for path in (folder, names)
    )
    alike = [np.corrcoef(rows.ravel(), learned.ravel())[0, 1] for learned in (drawn, started)]
    assert abs(alike[0]) < 0.2 < alike[1]
    assert len([*(folder.parent / "store" / "names").iterdir()]) == 1  # both reductions are of the same embeddings


@pytest.mark.full
def test_an_experiment_compares_them(job_env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    base = {"storage": str(tmp_path / "runs"), "stages.pretrain_encoder.epochs": 2}
    names = {"system": "sasrec", "set": {"encoder.initial": {"names": "random_projection"}}}
    systems = {"Popular": {"system": "most_popular"}, "SASRec": {"system": "sasrec"}, "LLM2SASRec": names}
    systems["LLMSeqSim-LLM2SASRec"] = names | {"system": "llmseqsim_sequential"}
    tree = {"name": "e", "base": str(processes.ROOT / NEXT_ITEMS[1]), "set": base, "seeds": [0, 1], "systems": systems}
    file.write_text(json.dumps(tree | {"reference": "Popular"}))
    options = ["--config", str(file)]
    done = processes.run(processes.job("experiment", *options), job_env, tmp_path / "log").checked()
    assert re.search(r"^SASRec +(0\.\d{4} ± 0\.\d{4} +){4}2$", done.out, re.MULTILINE)
    assert re.search(r"^Popular +(0\.\d{4} +){4}1$", done.out, re.MULTILINE)
    assert len(re.findall(r"^pretrain_encoder  taken from the store", done.out, re.MULTILINE)) == 2
    folder = tmp_path / "runs" / "e"
    results = json.loads((folder / "results.json").read_text())
    for title, of in results["systems"].items():
        for seed, value in of["slices"]["all"]["metrics"]["hr@20"]["seeds"].items():
            frame = pd.read_parquet(folder / "predictions" / title.lower() / f"{seed}.parquet")
            hits = [held[0] in ranked for held, ranked in zip(frame["held_out"], frame["ranked"], strict=True)]
            assert value == pytest.approx(sum(hits) / len(hits))
    assert_needs_no_network((folder / "report" / "index.html").read_text())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = processes.run(processes.job("experiment", *options), job_env, tmp_path / "again").checked()
    assert "all pairs are complete; nothing to train or score" in again.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
