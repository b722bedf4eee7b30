"""Lists out of a whole catalogue: an encoder's and those of what nothing trains, against loops in plain Python."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import left_out
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from groups import by_any_group
from left_out import ITEMS, SESSIONS, prepared_run, with_names

from rayrec.data import columns as c
from rayrec.data.catalogue import item_names, lists_table, open_sessions, training_counts, training_sessions
from rayrec.evaluation import next_item, predictions, sample
from rayrec.models.sasrecllm import SASRecLLM, build
from rayrec.next_item.hybrids import HYBRIDS
from rayrec.next_item.rankers import RANKERS, ranked_lists
from rayrec.run import Run
from rayrec.settings import validate
from rayrec.stages import ENCODERS, EncoderKind, Metric, Part, StageName, Task
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training import evaluate
from rayrec.training.job import StageJob
from rayrec.training.lists import Lister
from rayrec.training.model import model_shape

PROMPTS = [session[:-1] for session in SESSIONS]
TARGETS = [session[-1] for session in SESSIONS]
TRAINING = [session[:-2] for session in SESSIONS]
COUNTS = Counter(item for session in TRAINING for item in session)
TEST = np.arange(len(SESSIONS))
CPU = torch.device("cpu")
KINDS = [kind for kind, spec in ENCODERS.items() if spec.losses_of(Task.NEXT_ITEM)]


def model_of(run: Run) -> SASRecLLM:
    torch.manual_seed(0)
    shape = model_shape(run.config, run.facts, with_backbone=False)
    made = build(run.config, shape, parts=[Part.ENCODER], with_backbone=False)
    assert made.encoder is not None
    for parameter in made.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        made.parts()[Part.ENCODER]["item.weight"][0].zero_()
    made.set_mode(())
    return made


def job_of(run: Run) -> StageJob:
    return StageJob(config=run.config, stage=StageName.PRETRAIN_ENCODER, facts=run.facts, data=run.data.folder)


@torch.no_grad()
def slow_lists(model: SASRecLLM, prompts: list[list[int]], k: int, read: int = 3) -> list[list[tuple[int, float]]]:
    """One session at a time; every item's score by itself."""
    found = []
    for prompt in prompts:
        batch: Any = SimpleNamespace(history_BL=torch.tensor([prompt[-read:]]), label_BL=None)
        assert model.encoder is not None
        user = model.encoder.user_vectors(batch)[0]
        scores = {
            item: float(user @ model.encoder.item_vectors(torch.tensor([item]))[0])
            for item in range(1, ITEMS + 1)
            if item not in prompt and COUNTS[item]
        }
        found.append(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k])
    return found


def test_sessions_come_whole_and_those_of_training_end_before_what_is_held_out(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path).data.folder
    found = open_sessions(folder, "test").sessions(TEST[::-1])
    assert [found.between(i, i + 1).items.tolist() for i in range(len(SESSIONS))] == PROMPTS[::-1]
    trained = training_sessions(folder)
    assert [trained.between(i, i + 1).items.tolist() for i in range(len(SESSIONS))] == TRAINING
    assert training_counts(folder).tolist() == [COUNTS[item] for item in range(ITEMS + 1)]
    drawn = training_sessions(folder, seed=3)
    moved = [drawn.between(i, i + 1).items.tolist() for i in range(len(SESSIONS))]
    assert moved != TRAINING and sorted(moved) == sorted(TRAINING)
    names = item_names(folder)
    assert len(names) == ITEMS and names[left_out.UNNAMED - 1] is None and names[0] == "The Film 1, a story"


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_lists_equal_scoring_every_item_alone(kind: EncoderKind, tmp_path: Path) -> None:
    run = prepared_run(tmp_path, left_out.encoder_of(kind))
    model = model_of(run)
    rows = StageJob(config=run.config, stage=StageName.PRETRAIN_ENCODER, facts=run.facts, data=run.data.folder).rows(
        "test"
    )
    lister = Lister(model, training_counts(run.data.folder), run.config, CPU)
    ids, scores = lister.rank(rows.open(), TEST, 5)
    for session, expected in enumerate(slow_lists(model, PROMPTS, 5)):
        filled = len(expected)
        assert ids[session].tolist() == [item for item, _ in expected] + [0] * (5 - filled)
        assert scores[session, :filled] == pytest.approx([score for _, score in expected], rel=1e-4)


def test_validation_is_the_same_on_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared_run(tmp_path)
    job = job_of(run)
    model, validator = model_of(run), evaluate.open_validator(job)
    found = by_any_group(lambda: validator.evaluate(model, CPU), monkeypatch)
    lists = slow_lists(model, [session[:-2] for session in SESSIONS], 20)
    places = [
        [item for item, _ in ranked].index(session[-2]) + 1 if session[-2] in dict(ranked) else 0
        for ranked, session in zip(lists, SESSIONS, strict=True)
    ]
    ndcg = sum(1 / math.log2(place + 1) for place in places if place) / len(places)
    hits = sum(place > 0 for place in places) / len(places)
    assert 0 < hits < 1
    assert found == pytest.approx({Metric.NDCG.value: ndcg, Metric.HR.value: hits})
    assert job.judged_by.value in found


# What nothing trains


def test_every_system_without_a_model_has_a_ranker_or_joins_others() -> None:
    run = Run(validate(left_out.TREE, "test"))
    alone = {system for system in run.systems if SYSTEMS[system].reads is None}
    assert alone == RANKERS.keys() | HYBRIDS.keys() - {SystemName.LLMSEQSIM_SEQUENTIAL}


@pytest.mark.parametrize("system", RANKERS)
def test_lists_leave_out_what_the_session_holds(system: SystemName, tmp_path: Path) -> None:
    run = with_names(prepared_run(tmp_path))
    lists = ranked_lists(run, system, TEST[::-1])[c.RANKED].to_pylist()
    assert len(lists) == len(SESSIONS) and all(len(ranked) == len(set(ranked)) <= 5 for ranked in lists)
    for ranked, prompt in zip(lists[::-1], PROMPTS, strict=True):
        assert ranked and not set(ranked) & set(prompt)
        assert system is SystemName.LLMSEQSIM or all(COUNTS[item] for item in ranked)
    if system is SystemName.MOST_POPULAR:
        order = sorted(COUNTS, key=lambda item: (-COUNTS[item], item))
        assert lists[-1] == [item for item in order if item not in PROMPTS[0]][:5]


@pytest.mark.parametrize(
    ("system", "changes"),
    [
        (SystemName.SKNN, {"ranking.sknn": {"neighbours": 1}}),
        (SystemName.V_SKNN, {"ranking.v_sknn": {"neighbours": 1}}),
        (SystemName.V_SKNN, {"ranking.v_sknn": {"decay": "harmonic_squared", "similarity": "dot", "idf": True}}),
        (SystemName.LLMSEQSIM, {"ranking.llmseqsim": {"width": 4, "decay": "last"}}),
        (SystemName.LLMSEQSIM, {"ranking.llmseqsim": {"width": 4, "nearness": "euclidean"}}),
    ],
)
def test_settings_reach_their_ranker(system: SystemName, changes: dict[str, Any], tmp_path: Path) -> None:
    plain, other = (with_names(prepared_run(tmp_path / str(i), own)) for i, own in enumerate(({}, changes)))
    assert not ranked_lists(plain, system, TEST).equals(ranked_lists(other, system, TEST))


def test_without_times_neighbours_are_sampled_at_random(tmp_path: Path) -> None:
    found = [
        ranked_lists(
            prepared_run(tmp_path / str(i), {"ranking.sknn.sample": 1, **own}, timed=timed), SystemName.SKNN, TEST
        )
        for i, (timed, own) in enumerate(
            [(True, {}), (True, {"seed": 1}), (False, {}), (False, {}), (False, {"seed": 1})]
        )
    ]
    assert found[0].equals(found[1]) and found[2].equals(found[3])
    assert not found[0].equals(found[2]) and not found[2].equals(found[4])


# Their files


def test_a_file_of_lists_says_what_was_held_out(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    ids, lists = TEST[2:5], np.array([[4, 2, 0], [0, 0, 0], [1, 2, 3]])
    path = predictions.predictions_path(run, SystemName.SASREC)
    predictions.write_lists(
        run, path, ids, lists_table(lists, np.array([[3.0, 1, 9], [9, 9, 9], [2, 1, 0]], np.float32))
    )
    table = pq.read_table(path)
    assert table.schema == c.LISTS_SCHEMA
    assert table.to_pydict() == {
        "user_id": [2, 3, 4],
        "held_out": [[7], [11], [10]],
        "ranked": [[4, 2], [], [1, 2, 3]],
        "scores": [[3.0, 1.0], [], [2.0, 1.0, 0.0]],
    }
    found, held_out = next_item.read_lists(run, SystemName.SASREC)
    assert found.tolist() == lists.tolist() and held_out.items.tolist() == [7, 11, 10] and len(held_out) == 3
    marked = lists_table(lists).append_column("row", pa.array(ids))  # as it comes from the actors
    predictions.write_lists(run, path, ids, marked)
    assert pq.read_table(path).schema == c.LISTS_SCHEMA
    assert pq.read_table(path)["scores"].to_pylist() == [None] * 3


def test_the_caption_speaks_of_sessions(tmp_path: Path) -> None:
    assert sample.describe_sample(prepared_run(tmp_path)) == "all 10 of 10 test sessions; the same for every system"
    some = prepared_run(tmp_path / "some", {"evaluation.users": 4})
    assert sample.describe_sample(some).startswith("a fixed, seeded sample: 4 of 10 test sessions")
