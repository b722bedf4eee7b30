"""Next items asked about with Yes or No: each target, and an item drawn as from a list of all that is left."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from left_out import ITEMS, SEEN_FROM_END, SESSIONS, prepared_run, rerank_run

from rayrec import pipeline
from rayrec.config import Config
from rayrec.data import asked
from rayrec.data import columns as c
from rayrec.data.asked import ASKED_SPLITS, lacking_items, write_asked
from rayrec.data.beside import Beside, read_beside
from rayrec.data.catalogue import training_counts
from rayrec.data.rows import RowSource
from rayrec.errors import InputError
from rayrec.run import Run
from rayrec.sessions import Sessions
from rayrec.settings import load
from rayrec.stages import Metric, StageName, Stream
from rayrec.training.evaluate import ListValidator, ScoreValidator, open_validator
from rayrec.training.job import StageJob

TRAINED = Counter(item for session in SESSIONS for item in session[:-2])
YES_NO = (StageName.TUNE_LORA, StageName.TUNE_HYBRID)


def made(run: Run, folder: Path) -> dict[str, list[dict[str, Any]]]:
    folder.mkdir()
    write_asked(run.data.folder, run.config.data.warm_over, folder)
    place = Path(run.data.folder) / "asked"
    assert sorted(path.name for path in place.iterdir()) == ["asked.json", "train.parquet", "valid.parquet"]
    return {split: pq.read_table(place / f"{split}.parquet").to_pylist() for split in ASKED_SPLITS}


def slow_item(held: list[int], counts: np.ndarray, share: float) -> int:
    """The item of one event out of a list of all events that are left."""
    events = [item for item, count in enumerate(counts.tolist()) for _ in range(count) if item not in held]
    return events[int(share * len(events))] if events else 0


def test_what_a_session_lacks_is_drawn_as_from_a_list_of_its_events() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        items = int(draw.integers(2, 12))
        counts = np.append(0, draw.integers(0, 6, items))
        held = [draw.integers(1, items + 1, draw.integers(0, 15)).tolist() for _ in range(20)]
        shares = draw.random(20)
        shares[:2] = 0, np.nextafter(1, 0)
        expected = [slow_item(own, counts, share) for own, share in zip(held, shares, strict=True)]
        assert lacking_items(Sessions.of(held), counts, shares).tolist() == expected


def test_every_row_is_followed_by_one_that_is_no_answer(tmp_path: Path) -> None:
    """Of what its session lacks so far: what follows there is unknown, and may be drawn."""
    run = prepared_run(tmp_path)
    found, counts = made(run, tmp_path / "scratch"), np.array([TRAINED[item] for item in range(ITEMS + 1)])
    for split, rows in found.items():
        shares = asked._shares(split, 0, len(SESSIONS))
        so_far = [session[: len(session) - SEEN_FROM_END[split] + 1] for session in SESSIONS]
        expected = [slow_item(held, counts, share) for held, share in zip(so_far, shares, strict=True)]
        assert [other[c.ITEM_ID] for other in rows[1::2]] == expected
        prepared = pq.read_table(f"{run.data.folder}/{split}.parquet").to_pylist()
        assert rows[::2] == prepared and len(rows) == 2 * len(prepared)
        for held, own, other in zip(so_far, prepared, rows[1::2], strict=True):
            assert other[c.ITEM_ID] not in held and TRAINED[other[c.ITEM_ID]] > 0
            assert (other[c.LABEL], other[c.RATING], other[c.IS_STRICT_COLD]) == (0, None, False)
            assert other[c.IS_WARM] == (TRAINED[other[c.ITEM_ID]] > 3)
            assert all(own[name] == other[name] for name in (c.USER_ID, c.SEEN, c.TIMESTAMP))
    assert {row[c.IS_WARM] for rows in found.values() for row in rows[1::2]} == {True, False}
    assert found["train"][1::2] != found["valid"][1::2]


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared_run(tmp_path)
    whole = made(run, tmp_path / "whole")
    for size in (1, 3, 7):
        monkeypatch.setattr(asked, "_BLOCK_ROWS", size)
        assert made(run, tmp_path / str(size)) == whole
        assert (tmp_path / str(size) / "train.parquet").read_bytes() == (
            tmp_path / "whole" / "train.parquet"
        ).read_bytes()


def test_an_item_is_drawn_as_often_as_it_has_events() -> None:
    """Of 40,000 draws, every frequency lies within five standard deviations of its probability."""
    counts, rows = np.array([0, 50, 0, 30, 15, 5]), 40_000
    sessions = Sessions(np.full(rows, 3), np.arange(rows + 1))
    for split in ASKED_SPLITS:
        drawn = lacking_items(sessions, counts, asked._shares(split, 0, rows))
        share = np.bincount(drawn, minlength=6) / rows
        wanted = np.array([0, 50, 0, 0, 15, 5]) / 70
        assert (np.abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / rows)).all()


def test_who_holds_all_that_training_knows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared_run(tmp_path)
    monkeypatch.setattr(asked, "training_counts", lambda _: np.bincount([6, 6, 4], minlength=ITEMS + 1))
    with pytest.raises(InputError, match=r"train\.parquet, row 5: its session holds all that training knows; nothing"):
        made(run, tmp_path / "scratch")


# Who reads them


def test_only_prompts_for_yes_or_no_of_next_items_read_them() -> None:
    of_next = load(None, ["data.task=next_item", "data.dataset=synthetic", "stages.pretrain_encoder.loss=softmax"])
    both = {Beside.ASKED, Beside.PROMPTS}
    for stream in Stream:
        asks = stream in {Stream.TEXT_PROMPTS, Stream.HYBRID_PROMPTS}
        assert read_beside(of_next, stream) & both == (both if asks else set())
        assert read_beside(Config(), stream) & both == ({Beside.PROMPTS} if asks else set())
    assert both <= read_beside(of_next, Stream.INTERACTIONS, Stream.TEXT_PROMPTS)


def test_a_stage_reads_both_rows_and_their_prompts(tiny: Path, tmp_path: Path) -> None:
    run = rerank_run(tmp_path, tiny)
    jobs = run.stage_jobs()
    assert [*jobs] == ["pretrain_encoder", *YES_NO]
    for stage in YES_NO:
        rows = jobs[stage].rows("train").open()
        plain = RowSource(run.data.folder, "train", Stream.INTERACTIONS, run.facts.max_len).open()
        assert len(rows) == 2 * len(plain) == jobs[stage].training_rows
        fetched = rows.fetch(np.arange(len(rows))).to_pylist()
        histories = plain.fetch(np.arange(len(plain)))[c.HISTORY].to_pylist()
        for number, row in enumerate(fetched):
            session = SESSIONS[number // 2]
            assert row[c.HISTORY] == histories[number // 2] == session[: -SEEN_FROM_END["train"]][-run.facts.max_len :]
            assert row[c.LABEL] == 1 - number % 2
            assert row[c.SHARED] == fetched[number - number % 2][c.SHARED]
        yes, no = fetched[0], fetched[1]
        tokens, start = next((key, yes[at]) for key, at in _PLACES.items() if key in yes)
        assert yes[tokens][:start] == no[tokens][:start] and yes[tokens] != no[tokens]


_PLACES = {c.TEXT_TOKENS: c.TEXT_TITLE_AT, c.HYBRID_TOKENS: c.TITLE_AT}


def test_a_pass_over_the_data_is_twice_as_long(tiny: Path, tmp_path: Path) -> None:
    """Ten sessions are twenty rows: two steps of eight, and too few for one of 22."""
    run = rerank_run(tmp_path, tiny, {f"stages.{stage}": {"batch": 8, "steps_per_epoch": None} for stage in YES_NO})
    jobs = run.stage_jobs()
    assert [jobs[stage].steps_per_epoch for stage in jobs] == [5, 2, 2]
    assert [jobs[stage].training_rows for stage in jobs] == [10, 20, 20]
    for batch, fits in ((20, True), (22, False)):
        other = rerank_run(tmp_path / str(batch), tiny, {"stages.tune_lora.batch": batch})
        job = other.stage_jobs()[StageName.TUNE_LORA]
        if fits:
            pipeline._check_stage(job)
            continue
        with pytest.raises(InputError, match=r"tune_lora\.batch: 22 rows, but the training set has 20; use a smaller"):
            pipeline._check_stage(job)


def test_they_are_judged_by_what_is_asked(tiny: Path, tmp_path: Path) -> None:
    run = rerank_run(tmp_path, tiny)
    jobs = run.stage_jobs()
    assert isinstance(open_validator(jobs[StageName.PRETRAIN_ENCODER]), ListValidator)
    assert jobs[StageName.PRETRAIN_ENCODER].judged_by is Metric.NDCG
    for stage in YES_NO:
        validator = open_validator(jobs[stage])
        assert isinstance(validator, ScoreValidator) and jobs[stage].judged_by is Metric.AUC
        assert np.sort(np.concatenate(validator.batches)).tolist() == [*range(20)]
    assert training_counts(run.data.folder).sum() == sum(TRAINED.values())


def test_other_rows_asked_about_are_another_stage(tiny: Path, tmp_path: Path) -> None:
    run = rerank_run(tmp_path, tiny)

    def marks() -> dict[StageName, str]:
        found: dict[StageName, StageJob] = Run(run.config).stage_jobs()
        return {stage: job.fingerprint for stage, job in found.items()}

    before = marks()
    mark = Path(Beside.ASKED.mark(run.data.folder))
    mark.write_text(mark.read_text().replace('"train.parquet": "', '"train.parquet": "0'))
    after = marks()
    assert [stage for stage in before if before[stage] != after[stage]] == [*YES_NO]
