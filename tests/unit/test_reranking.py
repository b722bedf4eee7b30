"""SASRecLLM of next items: an encoder's candidates in its order, against one prompt a candidate. No actors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from left_out import SESSIONS, TUNED, encoder_of, rerank_run, train

from rayrec.data import columns as c
from rayrec.data.catalogue import training_counts
from rayrec.data.collate import Cut, collate
from rayrec.data.rows import RowSource
from rayrec.data.tokenise import load_tokenizer, open_encoder
from rayrec.errors import InputError
from rayrec.evaluation import predictions, sample, scoring
from rayrec.evaluation.scorer import ASKED, BATCHES
from rayrec.ranking import Reranker, candidate_table
from rayrec.recommendation.plan import make_plan
from rayrec.recommendation.recommenders import open_recommender
from rayrec.run import Run
from rayrec.sessions import Sessions
from rayrec.stages import EncoderKind, Part, StageName, Stream
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.lists import Lister
from rayrec.training.model import scoring_model

SASREC, SASRECLLM = SystemName.SASREC, SystemName.SASRECLLM
PLACES, CANDIDATES = 5, 7


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """System and batches' sizes of every actor call."""
    made: list[tuple[str, list[int]]] = []

    def answered(calls: Sequence[dict[str, Any]], kind: Any, arguments: Any, cluster: Any) -> Iterator[pa.Table]:
        actor = kind(*arguments)
        for call in calls:
            made.append((call[ASKED][0], [len(batch) for batch in call[BATCHES]]))
            yield actor(pa.Table.from_pylist([call]))

    monkeypatch.setattr(scoring, "answers", answered)
    return made


def run_of(folder: Path, tiny: Path, **changes: Any) -> Run:
    own = {"ranking.sasrecllm": {"candidates": CANDIDATES, **changes.pop("own", {})}}
    return train(rerank_run(folder, tiny, own | changes), *TUNED)


def lists_of(run: Run, *systems: SystemName) -> list[pd.DataFrame]:
    scoring.score_systems(run, systems)
    for system in systems:
        assert pq.read_schema(predictions.predictions_path(run, system)) == c.LISTS_SCHEMA
    return [predictions.read_predictions(run, system).set_index(c.USER_ID) for system in systems]


@torch.no_grad()
def slow_list(run: Run, tiny: Path, session: list[int], candidates: list[int]) -> list[tuple[int, float]]:
    """Each candidate by itself, in a prompt of its own."""
    model = scoring_model(scoring.scoring_job(run, SYSTEMS[SASRECLLM]))
    prompts = open_encoder(run.data.folder, run.config.data, load_tokenizer(tiny))
    scored = []
    for item in candidates:
        table = candidate_table(prompts, session, [item], shown=run.config.data.history, read=run.facts.max_len)
        scored.append((item, float(model(collate(table, 1, Cut.NOWHERE)).double().sigmoid())))
    return sorted(scored, key=lambda pair: -pair[1])[:PLACES]


def encoders_best(run: Run) -> list[list[int]]:
    """The candidates of every test session."""
    model = scoring_model(scoring.scoring_job(run, SYSTEMS[SASREC]))
    lister = Lister(model, training_counts(run.data.folder), run.config, torch.device("cpu"))
    rows = RowSource(run.data.folder, "test", Stream.INTERACTIONS, run.facts.max_len).open()
    found: list[list[int]] = lister.rank(rows, np.arange(len(SESSIONS)), CANDIDATES)[0].tolist()
    return found


@pytest.mark.parametrize("kind", [EncoderKind.SASREC, EncoderKind.GRU, EncoderKind.BERT4REC])
def test_the_encoders_best_come_in_the_language_models_order(kind: EncoderKind, tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny, **encoder_of(kind))
    encoder, ours = lists_of(run, SASREC, SASRECLLM)
    candidates = encoders_best(run)
    for user, session in enumerate(SESSIONS):
        assert candidates[user][:PLACES] == encoder[c.RANKED][user].tolist()
        known = [item for item in candidates[user] if item]
        expected = slow_list(run, tiny, session[:-1], known)
        assert ours[c.RANKED][user].tolist() == [item for item, _ in expected]
        assert ours[c.SCORES][user] == pytest.approx([score for _, score in expected], rel=1e-4)
        assert ours[c.HELD_OUT][user].tolist() == [session[-1]]
    assert any(ours[c.RANKED][user].tolist() != encoder[c.RANKED][user].tolist() for user in ours.index)
    assert any({*ours[c.RANKED][user]} - {*encoder[c.RANKED][user]} for user in ours.index)  # out of more than K


def test_some_sessions_are_asked_the_same_whoever_else_is(tiny: Path, tmp_path: Path, calls: list[Any]) -> None:
    rows = {}
    for sessions in (3, 6, None):
        run = run_of(tmp_path / str(sessions), tiny, own={"sessions": sessions})
        encoder, ours = lists_of(run, SASREC, SASRECLLM)
        rows[sessions] = {user: row.tolist() for user, row in ours[c.RANKED].items()}
        assert [*encoder.index] == [*range(len(SESSIONS))]
        assert sample.judged_rows(run, SASRECLLM, sample.test_sample(run)).tolist() == [*rows[sessions]]
        exception = f" but SASRecLLM ({sessions} of them)" if sessions else ""
        assert sample.describe_judged(run) == f"all 10 of 10 test sessions; the same for every system{exception}"
    assert [*map(len, rows.values())] == [3, 6, 10]
    for few, more in ((3, 6), (6, None)):
        assert rows[few].items() <= rows[more].items()
    assert calls[:2] == [("sasrec", [2, 4, 4]), ("sasrecllm", [3])]  # a batch of sessions is a call of its own
    assert calls[-4:] == [("sasrecllm", [1])] + [("sasrecllm", [3])] * 3


def test_recommendations_are_those_of_the_evaluation(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny)
    (ours,) = lists_of(run, SASRECLLM)
    sessions = Sessions.of([session[:-1] for session in SESSIONS])
    users = np.full(len(SESSIONS), c.UNKNOWN_USER, np.int32)
    ids, scores = open_recommender(make_plan(run, SASRECLLM, PLACES, None))(sessions, users, PLACES)
    assert scores is not None
    for user in range(len(SESSIONS)):
        known = ids[user] > 0
        assert ids[user][known].tolist() == ours[c.RANKED][user].tolist()
        assert scores[user][known] == pytest.approx(ours[c.SCORES][user], rel=1e-5)


def test_an_answer_that_starts_from_the_encoder_keeps_its_order_before_it_learns(tiny: Path, tmp_path: Path) -> None:
    """As the hybrid stage begins: with the encoder that finds the candidates, and an offset that learned nothing."""
    run = run_of(tmp_path, tiny, **{"mapper.offset": "encoder"})
    hybrid, first = (
        Path(run.part_folder(stage, Part.ENCODER)) for stage in (StageName.TUNE_HYBRID, StageName.PRETRAIN_ENCODER)
    )
    for name in ("model.safetensors", "part.json"):
        (hybrid / name).write_bytes((first / name).read_bytes())
    reranker = Reranker(scoring.scoring_job(run, SYSTEMS[SASRECLLM]), run.data.folder)
    candidates = np.array(encoders_best(run))
    mapper = reranker._scores.args[0].mapper
    assert mapper is not None and mapper.offset is not None
    for parameter in mapper.offset.parameters():
        torch.nn.init.zeros_(parameter)
    sessions = Sessions.of([session[:-1] for session in SESSIONS])
    ids, _ = reranker.order(sessions, np.full(len(SESSIONS), c.UNKNOWN_USER, np.int32), candidates, CANDIDATES)
    assert np.array_equal(ids, candidates)


def test_among_equals_the_encoders_order_stays(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, tiny)
    reranker = Reranker(scoring.scoring_job(run, SYSTEMS[SASRECLLM]), run.data.folder)
    told = {7: 0.5, 3: 0.9, 9: 0.5, 2: 0.5}
    monkeypatch.setattr(reranker, "_scores", lambda own, items, user: np.array([told[item] for item in items]))
    candidates = np.array([[7, 3, 9, 2], [9, 7, 0, 0], [0, 0, 0, 0]])
    ids, scores = reranker.order(Sessions.of([[1], [1, 4], [5]]), np.zeros(3, np.int32), candidates, 3)
    assert ids.tolist() == [[3, 7, 9], [9, 7, 0], [0, 0, 0]]
    assert scores.tolist() == [[pytest.approx(0.9), 0.5, 0.5], [0.5, 0.5, 0], [0, 0, 0]]


def test_what_is_not_trained_is_not_asked(tiny: Path, tmp_path: Path) -> None:
    run = train(rerank_run(tmp_path, tiny), StageName.PRETRAIN_ENCODER)
    with pytest.raises(InputError, match=r"stage tune_hybrid has not run; run jobs/train_stage\.py tune_hybrid first"):
        scoring.score_systems(run, [SASRECLLM])
