"""Lists for sessions that a person brings: of every kind of system, against one session and one item at a time."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from left_out import ITEMS, SESSIONS, TUNED, encoder_of, prepared_run, rerank_run, train, write_rows
from remains import everything

from rayrec import cli, storage
from rayrec.batch import Batch
from rayrec.data import columns as c
from rayrec.data.catalogue import training_counts
from rayrec.data.collate import Cut, collate
from rayrec.data.rows import RowSource
from rayrec.data.tokenise import load_tokenizer, open_encoder
from rayrec.errors import InputError
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.ranking import candidate_table
from rayrec.recommendation import actor, job
from rayrec.recommendation.job import Order, lists_schema, recommend
from rayrec.recommendation.plan import make_plan, open_run
from rayrec.recommendation.recommenders import open_recommender
from rayrec.recommendation.requests import open_requests
from rayrec.run import Run
from rayrec.sessions import Sessions
from rayrec.settings import validate, with_values
from rayrec.stages import EncoderKind, StageName, Stream
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.lists import Lister
from rayrec.training.model import scoring_model

CLICKS: dict[str, Any] = {
    "name": "c",
    "data": {"dataset": "synthetic", "history": 3},
    "encoder": {"width": 8, "max_len": 3},
    "engine": {"precision": "fp32"},
    "evaluation": {"batch": 2, "encoder_batch": 4},
    "cluster": {"workers": 1},
}
ASKED = [[3, 14, 1], [2, 2], [], [5, 9, 11, 4, 7], [6]]
USERS = np.array([3, 0, c.UNKNOWN_USER, 9, 1], np.int32)
RATED = {session[-3] for session in SESSIONS}  # by a training row


def clicks(folder: Path, changes: dict[str, Any] | None = None) -> Run:
    """A run of clicks over the rows of `left_out`."""
    run = Run(validate(with_values(CLICKS, {"storage": str(folder), **(changes or {})}), "test"))
    write_rows(Path(run.data.folder))
    storage.write_text(run.path("data", "prompts", "prompts.json"), json.dumps({"files": {}}))
    return run


def model_of(run: Run, system: SystemName) -> SASRecLLM:
    plan = make_plan(run, system, 2, None)
    wanted = plan.reranks or plan.ranks
    assert wanted is not None
    return scoring_model(wanted)


@torch.no_grad()
def slow_scores(model: SASRecLLM, session: list[int], user: int) -> dict[int, float]:
    """Of all items that training rated and the session does not hold, each by itself."""
    found = {}
    for item in sorted(RATED - {*session}):
        history = torch.tensor([session[-3:] or [0]])
        batch = Batch(torch.tensor([user + 1]), history, torch.tensor([item]), torch.zeros(1))
        found[item] = float(model(batch).double().sigmoid())
    return found


def ranked(scores: dict[int, float], k: int) -> list[tuple[int, float]]:
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def check(ids: Any, scores: Any, expected: list[list[tuple[int, float]]]) -> None:
    assert len(ids) == len(expected)
    for row, pairs in enumerate(expected):
        assert ids[row].tolist() == [item for item, _ in pairs] + [0] * (ids.shape[1] - len(pairs))
        assert scores[row, : len(pairs)] == pytest.approx([score for _, score in pairs], rel=1e-4)


def test_next_items_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = train(prepared_run(tmp_path), StageName.PRETRAIN_ENCODER)
    plan = make_plan(run, SystemName.SASREC, 5, None)
    rows = RowSource(run.data.folder, "test", Stream.INTERACTIONS, run.facts.max_len).open()
    ids = np.arange(len(SESSIONS))
    lister = Lister(model_of(run, SystemName.SASREC), training_counts(run.data.folder), run.config, torch.device("cpu"))
    evaluated = lister.rank(rows, ids, 5)
    recommender = open_recommender(plan)
    found = recommender(rows.sessions(ids), np.full(len(ids), c.UNKNOWN_USER, np.int32), 5)
    assert np.array_equal(found[0], evaluated[0]) and found[1] == pytest.approx(evaluated[1], rel=1e-5)
    nothing, _ = recommender(Sessions.of([[], [3]]), USERS[:2], 5)
    assert not nothing[0].any() and nothing[1].all()  # no session of training was empty


@pytest.mark.parametrize("kind", EncoderKind)
def test_an_encoder_of_clicks_scores_the_whole_catalogue(kind: EncoderKind, tmp_path: Path) -> None:
    run = train(clicks(tmp_path, {"encoder.kind": kind.value}), StageName.PRETRAIN_ENCODER)
    plan = make_plan(run, SystemName.SASREC, 6, None)
    assert plan.by_user == (kind in {EncoderKind.MF, EncoderKind.NEUMF}) and plan.chunk == 4
    model = model_of(run, SystemName.SASREC)
    slow = [slow_scores(model, session, int(user)) for session, user in zip(ASKED, USERS, strict=True)]
    check(*open_recommender(plan)(Sessions.of(ASKED), USERS, 6), [ranked(scores, 6) for scores in slow])


@pytest.mark.parametrize("kind", [EncoderKind.SASREC, EncoderKind.MF])
@pytest.mark.parametrize("system", [SystemName.ICL, SystemName.TALLREC, SystemName.SASRECLLM])
def test_a_language_model_orders_the_encoders_best(
    system: SystemName, kind: EncoderKind, tiny: Path, tmp_path: Path
) -> None:
    run = train(clicks(tmp_path, {"encoder.kind": kind.value, "backbone.sources": str(tiny)}), *TUNED)
    plan = make_plan(run, system, 3, 4)
    assert plan.chunk == 2
    encoder, model = model_of(run, SystemName.SASREC), model_of(run, system)
    prompts = open_encoder(run.data.folder, run.config.data, load_tokenizer(tiny))
    stream = SYSTEMS[system].reads
    assert stream is not None
    expected = []
    for session, user in zip(ASKED, USERS, strict=True):
        scores = {}
        for item, _ in ranked(slow_scores(encoder, session, int(user)), 4):
            table = candidate_table(prompts, session, [item], shown=3, read=3, stream=stream, user=int(user))
            with torch.no_grad():
                scores[item] = float(model(collate(table, 1, Cut.NOWHERE)).double().sigmoid())
        assert len({round(score, 6) for score in scores.values()}) == len(scores) == 4
        expected.append(ranked(scores, 3))
    check(*open_recommender(plan)(Sessions.of(ASKED), USERS, 3), expected)
    assert (Stream.TEXT_PROMPTS is stream) == (model.mapper is None)


def test_a_run_of_next_items_puts_as_many_in_order_as_it_says(tiny: Path, tmp_path: Path) -> None:
    run = train(rerank_run(tmp_path, tiny), *TUNED)
    plan = make_plan(run, SystemName.SASRECLLM, 3, None)
    assert (plan.candidates, plan.by_user, plan.chunk) == (5, False, 3)
    assert make_plan(run, SystemName.SASRECLLM, 3, 9).candidates == 9
    found, _ = open_recommender(make_plan(run, SystemName.SASREC, 5, None))(Sessions.of(ASKED), USERS, 5)
    ids, scores = open_recommender(plan)(Sessions.of(ASKED), USERS, 3)
    assert scores is not None and not ids[2].any()  # of an empty session
    for session, row, probabilities, candidates in zip(ASKED, ids, scores, found, strict=True):
        assert {*row} <= {*candidates} and not {*row[row > 0]} & {*session}
        assert (np.diff(probabilities) <= 0).all()
    for system in (SystemName.ICL, SystemName.TALLREC):
        with pytest.raises(InputError, match=rf"--system {system}: the run has none; choose .* or sasrec or sasrecllm"):
            make_plan(run, system, 3, None)


@pytest.mark.parametrize("system", [SystemName.MOST_POPULAR, SystemName.SKNN, SystemName.V_SKNN])
def test_who_has_no_session_gets_what_is_popular_or_nothing(system: SystemName, tmp_path: Path) -> None:
    plan = make_plan(prepared_run(tmp_path), system, 4, None)
    ids, scores = open_recommender(plan)(Sessions.of([[], [5, 6]]), USERS[:2], 4)
    assert scores is None and ids.shape == (2, 4) and ids[1].any() and not {5, 6} & {*ids[1]}
    assert ids[0].any() == (system is SystemName.MOST_POPULAR)
    empty, _ = open_recommender(plan)(Sessions.of([[], []]), USERS[:2], 4)
    assert np.array_equal(empty, np.tile(ids[0], (2, 1)))


# The whole job, its actors in this process


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sessions of each call."""
    calls: list[int] = []

    def streamed(generate: Any, count: int, kind: Any, arguments: Any, cluster: Any) -> Iterator[pa.Table]:
        made = kind(*arguments)
        for chunk in generate():
            calls.append(len(chunk))
            yield made(chunk)
        assert len(calls) == count

    monkeypatch.setattr(job, "streamed", streamed)
    monkeypatch.setattr(job, "connected", lambda _: nullcontext())
    yield calls


def asked_of(run: Run, folder: Path, **changes: Any) -> Order:
    run.bind()
    numbers = [[f"i{item}" for item in session] + ["gone"] for session in ASKED]
    content = pa.table({"session_id": [f"s{i}" for i in range(5)], "items": numbers, "user_id": USERS.astype(str)})
    pq.write_table(content, folder / "sessions.parquet")
    order = Order(
        run=run.folder,
        overrides=["cluster.workers=2"],
        system=SystemName.SASREC,
        sessions=str(folder / "sessions.parquet"),
        out=str(folder / "out" / "lists.parquet"),
        k=3,
        candidates=None,
        titles=False,
    )
    return Order(**(vars(order) | changes))


def test_a_file_of_lists_has_a_row_for_each_session(
    here: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(clicks(tmp_path), StageName.PRETRAIN_ENCODER)
    order = asked_of(run, tmp_path, titles=True)
    recommend(order)
    assert here == [4, 1]
    table = pq.read_table(order.out)
    assert table.schema == pa.schema(
        [
            ("session_id", pa.string()),
            ("items", pa.list_(pa.string())),
            ("titles", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
        ]
    )
    model, found = model_of(run, SystemName.SASREC), table.to_pydict()
    assert found["session_id"] == ["s0", "s1", "s2", "s3", "s4"]
    for row, (session, user) in enumerate(zip(ASKED, USERS, strict=True)):
        pairs = ranked(slow_scores(model, session, int(user)), 3)
        assert found["items"][row] == [f"i{item}" for item, _ in pairs]
        assert found["titles"][row] == [
            "Untitled i6" if item == 6 else f"The Film {item}, a story" for item, _ in pairs
        ]
        assert found["scores"][row] == pytest.approx([score for _, score in pairs], rel=1e-4)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        told[0],
        "sessions  5 sessions of 16 items; 5 of these are none of the run's and left out, 'gone' first; sessions left"
        " without one: 1",
        f"lists  5 of 3  ->  {order.out}",
    ]
    before = Path(order.out).read_bytes()
    here.clear()
    recommend(order)
    assert Path(order.out).read_bytes() == before


def test_without_scores_there_are_none(here: list[int], tmp_path: Path) -> None:
    order = asked_of(prepared_run(tmp_path), tmp_path, system=SystemName.MOST_POPULAR)
    recommend(order)
    table = pq.read_table(order.out)
    assert table.column_names == ["session_id", "items", "scores"] and table["scores"].null_count == 5
    assert all(len(items) == 3 for items in table["items"].to_pylist())


@pytest.mark.parametrize("sources", [["1", "2", "30"], ["1", "2", "x"], ["1", "2", "03"]])
def test_items_come_back_as_numbers_where_all_are(sources: list[str], tmp_path: Path) -> None:
    items = pa.table({"item_id": [1, 2, 3], "source_id": sources, "title": sources}).cast(c.ITEMS_SCHEMA)
    pq.write_table(items, tmp_path / "items.parquet")
    pq.write_table(pa.table({"session_id": [1], "items": [[2]]}), tmp_path / "sessions.parquet")
    found = open_requests(str(tmp_path / "sessions.parquet"), str(tmp_path), by_user=False)
    kind = pa.int64() if sources[2] == "30" else pa.string()
    assert lists_schema(found, titles=False).field("items").type == pa.list_(kind)


def test_what_breaks_leaves_nothing(here: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = asked_of(train(clicks(tmp_path), StageName.PRETRAIN_ENCODER), tmp_path)
    recommend(order)
    first, before = Path(order.out).read_bytes(), everything(tmp_path)

    def breaks(plan: Any) -> Any:
        recommender = open_recommender(plan)

        def second_fails(sessions: Sessions, users: Any, k: int) -> Any:
            if len(sessions) == 1:
                raise InputError("it broke")
            return recommender(sessions, users, k)

        return second_fails

    monkeypatch.setattr(actor, "open_recommender", breaks)
    for out in (order.out, str(tmp_path / "other.parquet")):
        with pytest.raises(InputError, match="it broke"):
            recommend(Order(**(vars(order) | {"out": out, "k": 2})))
    assert everything(tmp_path) == before and Path(order.out).read_bytes() == first


# What is asked for, and what is refused


def test_options_become_an_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Order] = []

    def ends_with(*options: str) -> Any:
        monkeypatch.setattr("sys.argv", ["recommend.py", "--run", "r", "--sessions", "s", "--out", "o", *options])
        with pytest.raises(SystemExit) as caught:
            cli.main_for_recommendation("", found.append)
        return caught.value.code

    plain: dict[str, Any] = {
        "run": "r",
        "sessions": "s",
        "out": "o",
        "k": 20,
        "candidates": None,
        "titles": False,
        "overrides": [],
    }
    assert ends_with("--system", "sknn") == 0
    assert found == [Order(system=SystemName.SKNN, **plain)]
    more = ["--k", "3", "--candidates", "9", "--titles", "--set", "a=b", "--set", "c=d"]
    assert ends_with("--system", "icl", *more) == 0
    changed: dict[str, Any] = {"k": 3, "candidates": 9, "titles": True, "overrides": ["a=b", "c=d"]}
    assert found[1] == Order(system=SystemName.ICL, **(plain | changed))
    assert ends_with("--system", "sasrek") == 2
    assert "error: --system sasrek: there is none; choose one of always_yes, " in capsys.readouterr().err
    assert ends_with("--system", "sknn", "--k", "0") == 2 and len(found) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"system": SystemName.BIAS},
            "--system bias_floor: no lists are made of it for new sessions; choose icl or",
        ),
        ({"system": SystemName.SKNN}, "--system sknn: the run has none; choose icl or tallrec or sasrec or sasrecllm"),
        ({"system": SystemName.TALLREC}, "stage tune_lora has not run; run jobs/train_stage.py tune_lora first"),
        ({"candidates": 50}, "--candidates: sasrec ranks the whole catalogue; leave it out"),
        ({"system": SystemName.ICL, "k": 101}, "--k 101: icl puts 100 candidates in order; add --candidates 101"),
        ({"overrides": ["seed=4"]}, r"another configuration \(seed: 0 -> 4\); --set may change cluster alone"),
        ({"run": "{0}/nowhere"}, r"nowhere: no run here; give --run the folder with its config\.yaml"),
        ({"out": "{0}/sessions.parquet"}, "--out .*sessions.parquet: among the sessions that are read"),
        ({"out": "{0}/c"}, "--out .*/c: a folder; name the file to write"),
        ({"out": "{0}/sessions.parquet/x/y"}, "--out .*: cannot be written"),
    ],
    ids=["floor", "other task", "untrained", "candidates", "few", "set", "no run", "input", "folder", "blocked"],
)
def test_an_order_that_cannot_be_met_is_refused(
    changes: dict[str, Any], message: str, here: list[int], tmp_path: Path
) -> None:
    order = asked_of(train(clicks(tmp_path), StageName.PRETRAIN_ENCODER), tmp_path)
    before = everything(tmp_path)
    given = {key: value.format(tmp_path) if type(value) is str else value for key, value in changes.items()}
    with pytest.raises(InputError, match=message) as caught:
        recommend(Order(**(vars(order) | given)))
    assert "\n" not in str(caught.value) and everything(tmp_path) == before and not here


@pytest.mark.parametrize(
    "system", [SystemName.EMBEDDING_ENSEMBLE, SystemName.LLMSEQSIM_SEQUENTIAL, SystemName.LLMSEQPROMPT]
)
def test_what_answers_for_the_runs_own_sessions_alone_is_refused(system: SystemName, tmp_path: Path) -> None:
    able = "most_popular or sknn or v_sknn or llmseqsim or sasrec"
    with pytest.raises(InputError, match=rf"--system {system}: .*; choose {able}$"):
        make_plan(prepared_run(tmp_path), system, 5, None)


@pytest.mark.parametrize(
    ("changes", "system", "key"),
    [
        ({"encoder.history": "rated"}, SystemName.SASREC, "encoder.history"),
        ({"encoder.offset": "feature_floor"}, SystemName.ICL, "encoder.offset"),
        ({"mapper.offset": "feature_floor"}, SystemName.SASRECLLM, "mapper.offset"),
        ({"mapper.features": "feature_floor"}, SystemName.SASRECLLM, "mapper.features"),
    ],
)
def test_what_reads_ratings_is_refused(changes: dict[str, Any], system: SystemName, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"this run's {key} reads ratings, which sessions of liked items lack"):
        make_plan(clicks(tmp_path, changes), system, 5, None)


def test_a_run_is_what_its_folder_says(tmp_path: Path) -> None:
    run = prepared_run(tmp_path / "runs", encoder_of(EncoderKind.GRU))
    run.bind()
    moved = tmp_path / "elsewhere" / "called otherwise"
    moved.parent.mkdir()
    Path(run.folder).rename(moved)
    found = open_run(str(moved), ["cluster.cpus_per_worker=3"])
    assert found.folder == str(moved) and found.config.encoder == run.config.encoder
    assert found.facts.items == ITEMS and found.config.cluster.cpus_per_worker == 3
