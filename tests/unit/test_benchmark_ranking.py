"""What lists are measured against finds the same: RecBole's metrics, and its evaluation with an encoder of ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from groups import Group
from left_out import prepared_run

from rayrec.benchmark import ranking
from rayrec.benchmark.ranking import CatalogueEvaluation, DrawnSessions, recbole_metrics
from rayrec.data.catalogue import training_counts
from rayrec.models.sasrecllm import build
from rayrec.stages import Metric, Part, StageName
from rayrec.training import evaluate
from rayrec.training.job import StageJob
from rayrec.training.model import model_shape


def test_recboles_metrics_by_hand() -> None:
    hits = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    found = recbole_metrics(hits, np.array([1, 4, 2]))
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert found == pytest.approx(
        {
            "recall": (1 + 2 / 4 + 0) / 3,
            "mrr": (1 / 2 + 1 + 0) / 3,
            "ndcg": (second + (1 + third) / (1 + second + third) + 0) / 3,
            "hit": 2 / 3,
            "precision": (1 / 3 + 2 / 3 + 0) / 3,
        }
    )


@pytest.mark.parametrize("batch", [4096, 3])
def test_both_evaluations_agree(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_RECBOLE_BATCH", batch)
    for module in (ranking, evaluate):
        monkeypatch.setattr(module, "VALID_K", 4)
    run, group = prepared_run(tmp_path), Group(1)
    monkeypatch.setattr(evaluate, "dist", group)
    job = StageJob(config=run.config, stage=StageName.PRETRAIN_ENCODER, facts=run.facts, data=run.data.folder)
    torch.manual_seed(2)
    shape = model_shape(run.config, run.facts, with_backbone=False)
    model = build(run.config, shape, parts=[Part.ENCODER], with_backbone=False)
    evaluation = CatalogueEvaluation(job, model, training_counts(run.data.folder))
    assert group.run(lambda: evaluation.ours(0)) == [10]
    assert evaluation.theirs(0) == 10
    expected = evaluation.recbole.evaluate()
    assert 0 < expected["ndcg"] < expected["hit"] < 1
    assert evaluation.found == pytest.approx({Metric.NDCG.value: expected["ndcg"], Metric.HR.value: expected["hit"]})
    evaluation.found = {**evaluation.found, Metric.HR.value: expected["hit"] + 0.1}
    with pytest.raises(ArithmeticError, match=r"HR@20 is 0\.\d+ here, 0\.\d+ by RecBole"):
        evaluation.theirs(1)


def test_sessions_are_drawn() -> None:
    drawn = DrawnSessions.draw(50, 40, 8)
    assert drawn.users_SD.shape == (50, 8) and drawn.items_VD.shape == (40, 8)
    assert len(drawn.held) == 50 and drawn.held.lengths.min() >= 1 and 6 < drawn.held.lengths.mean() < 12
    assert drawn.ours(0) == drawn.bare(0) == 50
