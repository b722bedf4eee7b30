"""An ensemble: its weights against a search written the slow way, and the files that it leaves."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rayrec import storage
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.evaluation import ensemble, predictions, sample
from rayrec.evaluation.ensemble import score_ensemble
from rayrec.evaluation.predictions import choice_path, predictions_path, read_predictions
from rayrec.evaluation.sample import validation_sample
from rayrec.floors import auc_and_uauc
from rayrec.models.ensemble import PARTS, candidates, choose_weights, pool
from rayrec.run import Run
from rayrec.stages import StageName
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.evaluate import ScoreValidator, open_validator
from rayrec.training.job import StageJob

MEMBERS = SYSTEMS[SystemName.ENSEMBLE].members


def test_members_are_systems_that_a_run_scores() -> None:
    assert [*MEMBERS] == ["sasrec", "tallrec", "sasrecllm"]
    assert {system for system, spec in SYSTEMS.items() if spec.members} == {SystemName.ENSEMBLE}
    assert all(SYSTEMS[member].after for member in MEMBERS)


# Weights and pool


@pytest.mark.parametrize(("members", "count"), [(1, 1), (2, 13), (3, 91)])
def test_the_grid_is_whole_and_the_even_come_first(members: int, count: int) -> None:
    found = candidates(members)
    assert len(found) == len(set(found)) == count == math.comb(PARTS + members - 1, members - 1)
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in found)
    assert found[0] == (1 / members,) * members
    spread = [max(weights) - min(weights) for weights in found]
    assert spread[-1] == (1 if members > 1 else 0)
    assert {weights for weights in found if max(weights) == 1} == set(found[-members:])


def test_a_pool_is_the_mean_of_log_odds() -> None:
    scores = np.array([[0.2, 0.5, 0.9], [0.7, 0.7, 0.7], [0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    weights = (0.25, 0.25, 0.5)
    odds = (0.2 / 0.8) ** 0.25 * 1.0**0.25 * (0.9 / 0.1) ** 0.5
    found = pool(scores, weights)
    assert found[0] == pytest.approx(odds / (1 + odds), abs=1e-12)
    assert found[1] == pytest.approx(0.7, abs=1e-12)  # who agree are not outdone
    assert found[2] == pytest.approx(0.5, abs=1e-9) and 1 - 1e-15 <= found[3] <= 1
    assert pool(scores, (0, 0, 1))[:2] == pytest.approx([0.9, 0.7], abs=1e-12)


def invented(rows: int = 240, seed: int = 1) -> tuple[Any, Any, Any]:
    """Users, labels, and the scores of three members: two know different halves of the taste, the third nothing."""
    draw = np.random.default_rng(seed)
    taste = draw.normal(0, 1, (rows, 2))
    label = (draw.random(rows) < 1 / (1 + np.exp(-2 * taste.sum(1)))).astype(np.int64)
    logits = np.column_stack([taste, draw.normal(0, 1, rows)]) + draw.normal(0, 0.5, (rows, 3))
    return draw.integers(0, 20, rows), label, 1 / (1 + np.exp(-logits))


def slow_auc_and_uauc(user: Any, label: Any, score: Any) -> float:
    frame = pd.DataFrame({"user": user, "label": label, "score": score})
    each = [roc_auc_score(own.label, own.score) for _, own in frame.groupby("user") if own.label.nunique() == 2]
    return float(roc_auc_score(label, score) + np.mean(each))


def test_the_weights_are_the_best_of_the_grid() -> None:
    user, label, scores = invented()
    best, value = None, -math.inf
    for i, j in itertools.product(range(13), range(13)):
        if i + j <= 12:
            weights = np.array([i, j, 12 - i - j]) / 12
            logit = np.log(scores / (1 - scores)) @ weights
            now = slow_auc_and_uauc(user, label, logit)  # a logit ranks as its probability does
            if now > value + 1e-12:
                best, value = tuple(weights), now
    found = choose_weights(user, label, scores, auc_and_uauc)
    assert slow_auc_and_uauc(user, label, pool(scores, found)) == pytest.approx(value, abs=1e-9)
    assert found == pytest.approx(best) and min(found[:2]) > 0.2 and found[2] < 0.2
    alone = [slow_auc_and_uauc(user, label, scores[:, member]) for member in range(3)]
    assert value > max(alone) + 0.05
    assert choose_weights(user, label, scores, auc_and_uauc) == found


def test_of_equals_the_most_even_are_taken() -> None:
    user, label, scores = invented()
    same = scores[:, [0, 0, 0]]
    third = pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert choose_weights(user, label, same, auc_and_uauc) == third
    assert choose_weights(user, np.ones_like(label), scores, auc_and_uauc) == third  # one class: no AUC is a number
    wrong = np.column_stack([label * 0.8 + 0.1, 0.9 - label * 0.8])
    assert choose_weights(user, label, wrong, auc_and_uauc) == pytest.approx((7 / 12, 5 / 12))


# Files


ROWS = {"train": 60, "valid": 50, "test": 40}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of prepared data without prompts, which a stub does not read."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, rows in ROWS.items():
        columns: dict[str, Any] = {name: np.zeros(rows, np.int64) for name in c.ROWS_SCHEMA.names}
        columns |= {c.USER_ID: draw.integers(0, 6, rows), c.ITEM_ID: draw.integers(1, 9, rows)}
        columns |= {c.LABEL: draw.integers(0, 2, rows), c.IS_WARM: draw.random(rows) < 0.5}
        table = pa.table({name: pa.array(columns[name]).cast(c.ROWS_SCHEMA.field(name).type) for name in columns})
        pq.write_table(table.select(c.ROWS_SCHEMA.names).cast(c.ROWS_SCHEMA), folder / f"{split}.parquet")
    users = {c.USER_ID: range(6), c.SOURCE_ID: map(str, range(6)), c.LIKED: [[]] * 6}
    pq.write_table(pa.table({name: list(v) for name, v in users.items()}, c.USERS_SCHEMA), folder / "users.parquet")
    splits = {split: {"rows": rows} for split, rows in ROWS.items()}
    manifest = {"users": 6, "items": 8, "mean_liked_per_training_user": 3, "splits": splits, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def config(tmp_path: Path) -> Config:
    hybrid = {"valid_users": 4, "valid_rows_per_user": 5}
    stages = {"pretrain_encoder": {"valid_users": 2}, "tune_lora": {"valid_users": 3}, "tune_hybrid": hybrid}
    return Config.model_validate({"storage": str(tmp_path), "stages": stages, "evaluation": {"users": 5}})


def test_the_validation_rows_are_those_of_the_stage(prepared: Path, tmp_path: Path) -> None:
    run = Run(config(tmp_path), prepared=str(prepared))
    job = StageJob(config=run.config, stage=StageName.PRETRAIN_ENCODER, facts=run.facts, data=run.data.folder)
    validator = open_validator(job)
    assert isinstance(validator, ScoreValidator)
    found = validation_sample(run, StageName.PRETRAIN_ENCODER)
    assert sorted(found) == sorted(np.concatenate(validator.batches)) and 2 <= len(found) < ROWS["valid"]
    assert 4 <= len(validation_sample(run, StageName.TUNE_HYBRID)) <= 20


def test_an_ensemble_leaves_weights_predictions_and_what_they_came_from(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = config(tmp_path)
    members = {name: Run(of, place=f"{tmp_path}/{name}", prepared=str(prepared)) for name in MEMBERS}
    run = Run(of, place=f"{tmp_path}/pool", prepared=str(prepared))
    ids, draw = sample.test_sample(run), np.random.default_rng(4)
    tested = {name: draw.random(len(ids)) for name in MEMBERS}
    for name, member in members.items():
        predictions.write_scores(member, "test", predictions_path(member, name), ids, tested[name])
    asked: list[tuple[str, str]] = []

    def score(member: Run, systems: list[SystemName], split: str, ids: Any) -> Iterator[tuple[SystemName, Any]]:
        """The encoder knows the label, the others do not."""
        asked.append((member.folder.rpartition("/")[2], split))
        assert np.array_equal(ids, validation_sample(run, StageName.TUNE_HYBRID))  # of the members' last stage
        label = pd.read_parquet(prepared / "valid.parquet")[c.LABEL].to_numpy()[ids]
        (system,) = systems
        yield system, np.where(label == 1, 0.8, 0.2) if system == "sasrec" else np.linspace(0.3, 0.6, len(ids))

    monkeypatch.setattr(ensemble, "score_split", score)
    score_ensemble(run, SystemName.ENSEMBLE, members)
    assert asked == [(name, "valid") for name in MEMBERS]
    weights: Mapping[str, float] = json.loads(storage.read_text(choice_path(run, SystemName.ENSEMBLE)))
    assert [*weights] == [*MEMBERS] and sum(weights.values()) == pytest.approx(1) and weights["sasrec"] >= 1 / 3

    found = read_predictions(run, SystemName.ENSEMBLE)
    expected = sum(weights[name] * np.log(tested[name] / (1 - tested[name])) for name in MEMBERS)
    assert found[c.SCORE].to_numpy() == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-12)
    assert found.drop(columns=c.SCORE).equals(read_predictions(members[MEMBERS[0]], MEMBERS[0]).drop(columns=c.SCORE))
    kept = [pd.read_parquet(tmp_path / "pool" / "validation" / f"{name}.parquet") for name in MEMBERS]
    user, label = (kept[0][name].to_numpy() for name in (c.USER_ID, c.LABEL))
    again = choose_weights(user, label, np.column_stack([frame[c.SCORE] for frame in kept]), auc_and_uauc)
    assert list(weights.values()) == pytest.approx(again)

    path = predictions_path(run, SystemName.ENSEMBLE)
    before = storage.read_bytes(path)
    score_ensemble(run, SystemName.ENSEMBLE, members)  # as after a kill: nothing is scored again
    assert len(asked) == 3 and storage.read_bytes(path) == before
