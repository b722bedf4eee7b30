"""Sessions: the core against a slow loop, cuts by hand and with ties in time, and nothing of later in what trains."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import slow_sessions
from slow_sessions import Event

from rayrec.config import Config, identity
from rayrec.config.data import DataConfig
from rayrec.data import columns as c
from rayrec.data import sessions as s
from rayrec.data.cuts import cut_times
from rayrec.data.datasets import open_dataset
from rayrec.data.histories import BUCKET, Vocabulary, encode
from rayrec.data.survey import Rule, Survey, fold_titles, sightings
from rayrec.errors import InputError
from rayrec.settings import load, validate, with_values

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("RAYREC_DATA_ROOT", ROOT.parent / "shared" / "data")) / "amazon-beauty"
TASK = "data.task=next_item"
LOSS = "stages.pretrain_encoder.loss=softmax"  # the default learns from labels

# Its configuration


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.core=5"], "data: core: for task next_item only; leave data.core out"),
        (["data.min_rating=4"], "data: min_rating: for task next_item only; leave data.min_rating out"),
        (["data.split={leave_one_out: true}"], "split.leave_one_out: cuts sessions; set data.task: next_item"),
        (
            [TASK, "data.split={leave_one_out: true, train: .8}"],
            "leave_one_out cuts every session on its own; leave train",
        ),
        ([TASK, "data.split={leave_one_out: true, folds: 3, fold: 1}"], "leave fold and folds out"),
        ([TASK, "data.threshold=3"], "threshold: a next item has no label; data.min_rating drops low ratings"),
        (
            ["data={dataset: steam, sources: [x]}"],
            "task click: dataset 'steam' has no ratings; set data.task: next_item",
        ),
        (["data={dataset: table, sources: [x], columns: {rating: null}}"], "dataset 'table' has no ratings"),
        ([TASK, "data.dataset=collm", "data.sources=[x]"], "task next_item: dataset 'collm' comes labelled"),
        (
            [TASK, "encoder.history=rated"],
            "encoder.history: rated learns from what was disliked; for data.task next_item",
        ),
        ([TASK, "mapper.offset=feature_floor"], "mapper.offset: feature_floor learns from what was disliked"),
        ([TASK, "mapper.features=feature_floor"], "mapper.features: feature_floor learns from what was disliked"),
        ([TASK, "data.core=0"], "data.core: Input should be greater than 0"),
    ],
)
def test_what_does_not_go_together_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(None, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_clicks_are_the_same_content_as_ever() -> None:
    assert not {"task", "core", "repeats", "min_rating"} & identity(Config())["data"].keys()
    assert identity(Config())["data"]["split"] == {"train": 0.8, "valid": 0.1}


@pytest.mark.parametrize("split", ["{leave_one_out: true}", "{train: .64, valid: .16}", "{folds: 3, fold: 2}"])
def test_next_items_come_back(split: str) -> None:
    one = load(None, [TASK, LOSS, "data.core=5", "data.repeats=first", f"data.split={split}"])
    tree = one.model_dump(mode="json")
    assert tree["data"]["task"] == "next_item" and validate(tree, "x") == one
    assert identity(one) != identity(load(None, [TASK, LOSS, f"data.split={split}"]))
    assert validate(with_values(tree, {"data.core": 3}), "x").data.core == 3


def test_repeats_are_as_published_unless_asked() -> None:
    of = {name: DataConfig(task="next_item", dataset=name, sources=("x",)) for name in ("steam", "sessions")}
    assert {name: data.resolved_repeats for name, data in of.items()} == {"steam": "first", "sessions": "keep"}
    assert of["steam"].model_copy(update={"repeats": "keep"}).resolved_repeats == "keep"


# What stays


def gathered(events: list[Event]) -> pa.Table:
    """Sessions out of rows; users and items are numbers already."""
    columns = {
        c.USER_ID: pa.array([int(event.user) for event in events], pa.int32()),
        c.ITEM_ID: pa.array([int(event.item) for event in events], pa.int32()),
        c.RATING: pa.array([event.rating for event in events], pa.float32()),
        c.TIMESTAMP: pa.array([event.time for event in events], pa.int64()),
        c.ROW: pa.array(range(len(events)), pa.int64()),
        BUCKET: pa.array([0] * len(events), pa.int32()),
    }
    return s.sessions_of(pa.table(columns))


def items_of(sessions: pa.Table) -> dict[int, list[int]]:
    return {row[c.USER_ID]: [one[c.ITEM_ID] for one in row[s.SESSION]] for row in sessions.to_pylist()}


def random_events(seed: int, rows: int = 150, users: int = 14, items: int = 12, times: int = 30) -> list[Event]:
    """Full of ties in time and of items that come again."""
    draw = np.random.default_rng(seed)
    users_of = np.minimum(draw.integers(users, size=rows), draw.integers(users, size=rows))
    return [
        Event(str(user), str(draw.integers(1, items + 1)), float(draw.integers(1, 6)), int(draw.integers(times)))
        for user in users_of
    ]


def test_a_session_is_in_the_order_of_time_and_ties_keep_the_files() -> None:
    events = [
        Event("1", "5", 1, 9),
        Event("0", "1", 2, 3),
        Event("1", "4", 3, 2),
        Event("1", "6", 4, 9),
        Event("1", "7", 5, 2),
    ]
    sessions = gathered(events)
    assert items_of(sessions) == {0: [1], 1: [4, 7, 5, 6]}
    assert s.interactions(sessions).to_pydict() == {
        c.USER_ID: [0, 1, 1, 1, 1],
        c.ITEM_ID: [1, 4, 7, 5, 6],
        c.RATING: [2, 3, 5, 1, 4],
        c.TIMESTAMP: [3, 2, 2, 9, 9],
    }
    assert s.last_times(sessions).tolist() == [3, 9] and s.lengths(sessions.slice(1)).tolist() == [4]


def test_low_ratings_and_repeats() -> None:
    events = [
        Event("0", "1", 4.1, 1),
        Event("0", "1", 5, 1),
        Event("0", "2", 4, 1),
        Event("0", "1", 5, 2),
        Event("1", "2", 1, 1),
    ]
    sessions = gathered(events)
    assert items_of(s.without_low(sessions, 4.1)) == {0: [1, 1, 1]}  # 4.1 as float32 is less than 4.1
    assert items_of(s.without_repeats(sessions, (c.ITEM_ID, c.TIMESTAMP))) == {0: [1, 2, 1], 1: [2]}
    assert items_of(s.without_repeats(sessions, (c.ITEM_ID,))) == {0: [1, 2], 1: [2]}
    assert items_of(s.of_length(sessions, 2)) == {0: [1, 1, 2, 1]}


def found_core(sessions: pa.Table, least: int, size: int) -> pa.Table:
    """The core, counted block by block."""
    blocks = [sessions.slice(start, size) for start in range(0, len(sessions), size)]
    items = max(max(known) for known in items_of(sessions).values())

    def count(core: s.Core) -> s.IntArray:
        counts = np.zeros(items + 1, np.int64)
        for counted in (s.core_counts(block, core) for block in blocks):
            counts[counted[c.ITEM_ID].to_numpy()] += counted[s.COUNT].to_numpy()
        return counts

    core = s.find_core(count, items, least)
    return pa.concat_tables([s.of_core(block, core) for block in blocks])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least", [1, 2, 4, 6, 9])
def test_the_core_is_that_of_a_slow_loop(seed: int, least: int) -> None:
    events = random_events(seed)
    whole = gathered(events)
    sessions = s.without_repeats(whole, (c.ITEM_ID, c.TIMESTAMP))
    found = slow_sessions.in_core(slow_sessions.merged(events), least)
    expected = {int(user): [int(event.item) for event in known] for user, known in sorted(found.items())}
    assert expected or least == 9
    for size in (1, 3, 100):
        assert items_of(found_core(sessions, least, size)) == expected


def test_a_core_that_peels_off_one_by_one() -> None:
    """A path of users and items falls apart from its end, a pair a pass; the square stays."""
    square = [Event(str(user), str(item), 1, item) for user in (0, 1) for item in (1, 2)]
    path = [Event(str(user), str(item), 1, item) for user in range(2, 9) for item in (user, user + 1)]
    assert items_of(found_core(gathered(square + path), 2, 3)) == {0: [1, 2], 1: [1, 2]}
    assert len(found_core(gathered(path), 2, 3)) == 0


def test_new_ids_keep_the_order() -> None:
    sessions = gathered([Event("1", "2", 1, 1), Event("1", "5", 1, 2), Event("3", "5", 1, 1), Event("3", "2", 1, 2)])
    users, items = np.array([False, True, False, True]), np.array([False, False, True, False, False, True])
    assert items_of(s.renumbered(sessions, s.NewIds.of(users, items))) == {0: [1, 2], 1: [2, 1]}


# How they are cut


def cut_up(
    events: list[Event], data: DataConfig, size: int = 4
) -> tuple[dict[str, list[dict[str, Any]]], dict[int, list[int]]]:
    """Rows of each set and the items of each session: the steps of ``write_sessions``, in blocks of ``size``."""
    sessions = s.without_repeats(gathered(events), (c.ITEM_ID, c.TIMESTAMP))
    sessions = s.of_length(sessions, 3 if data.split.leave_one_out else 2)
    items = max(int(event.item) for event in events)
    if not data.split.leave_one_out:
        times = pa.table({c.TIMESTAMP: np.sort(s.last_times(sessions))})
        sessions = s.cut_whole(sessions, cut_times([times], len(sessions), data.split)[0])
    blocks = [sessions.slice(start, size) for start in range(0, len(sessions), size)]
    counts = np.zeros(items + 1, np.int64)
    for counted in map(s.training_counts, blocks):
        counts[counted[c.ITEM_ID].to_numpy()] += counted[s.COUNT].to_numpy()
    if not data.split.leave_one_out:
        blocks = [s.of_length(s.only_trained(s.before(block, s.AFTER), counts), 2) for block in blocks]
    rows = [row for block in blocks for row in s.rows_of(block, s.Trained(counts, data.warm_over)).to_pylist()]
    sets = {name: [row for row in rows if row[s.SPLIT] == place] for place, name in enumerate(c.SPLITS)}
    liked = {row[c.USER_ID]: row[c.LIKED] for block in blocks for row in s.liked_of(block).to_pylist()}
    return sets, liked


def of_task(split: dict[str, Any]) -> DataConfig:
    return DataConfig.model_validate({"task": "next_item", "split": split, "warm_over": 1})


LEAVE_ONE_OUT = of_task({"leave_one_out": True})


def told(row: dict[str, Any]) -> tuple[int, ...]:
    return row[c.USER_ID], row[c.ITEM_ID], row[c.SEEN], row[c.TIMESTAMP]


def test_leave_one_out_by_hand() -> None:
    events = [Event("0", str(item), 1, 10 - item) for item in (1, 2, 3, 4)]  # the newest comes first in the file
    events += [
        Event("1", "1", 2, 5),
        Event("1", "9", 3, 5),
        Event("1", "2", 4, 5),
        Event("2", "1", 1, 1),
        Event("2", "2", 1, 2),
    ]
    sets, liked = cut_up(events, LEAVE_ONE_OUT)
    assert liked == {0: [4, 3, 2, 1], 1: [1, 9, 2]}  # two are too few
    assert [told(row) for row in sets["train"]] == [(0, 3, 1, 7), (1, 1, 0, 5)]
    assert [told(row) for row in sets["valid"]] == [(0, 2, 2, 8), (1, 9, 1, 5)]
    assert [told(row) for row in sets["test"]] == [(0, 1, 3, 9), (1, 2, 2, 5)]
    assert [(row[c.LABEL], row[c.RATING]) for row in sets["test"]] == [(1, 1), (1, 4)]
    # Training knows 4 and 3 of session 0 and 1 of session 1.
    assert [row[c.IS_STRICT_COLD] for name in c.SPLITS for row in sets[name]] == [False, False, True, True, False, True]


def test_whole_sessions_by_hand() -> None:
    """Five sessions end at 5, 7, 7, 8, 9: those that end at a cut are of the later side, whatever they began with."""
    ends = {"0": 7, "1": 5, "2": 9, "3": 7, "4": 8}
    items = {"0": (1, 2), "1": (1, 2, 3), "2": (6, 1, 2, 6), "3": (3, 4, 1), "4": (5, 2)}
    events = [
        Event(user, str(item), 1, ends[user] - back)
        for user, known in items.items()
        for back, item in zip(range(len(known) - 1, -1, -1), known, strict=True)
    ]
    sets, liked = cut_up(events, of_task({"train": 0.4, "valid": 0.2}))
    # The cut between two and three of five falls between two that end at 7: both validate; so does none but them.
    assert [told(row) for row in sets["train"]] == [(1, 3, 2, 5)]
    assert [told(row) for row in sets["valid"]] == [(0, 2, 1, 7), (3, 1, 1, 7)]  # training lacks 4
    assert [told(row) for row in sets["test"]] == [(2, 2, 1, 8)]  # training lacks 6, and all of session 4 but one
    assert liked == {0: [1, 2], 1: [1, 2, 3], 2: [1, 2], 3: [3, 1]}
    assert [row[c.IS_WARM] for name in c.SPLITS for row in sets[name]] == [False] * 4


@pytest.mark.parametrize("seed", range(6))
def test_leave_one_out_trains_on_nothing_of_what_it_holds_out(seed: int) -> None:
    events = random_events(seed)
    sets, liked = cut_up(events, LEAVE_ONE_OUT)
    assert sets["train"] and [len(sets[name]) for name in c.SPLITS] == [len(liked)] * 3
    rows = {name: {row[c.USER_ID]: row for row in sets[name]} for name in c.SPLITS}
    for user, items in liked.items():
        one, two, three = (rows[name][user] for name in c.SPLITS)
        assert [row[c.SEEN] for row in (one, two, three)] == [len(items) - left for left in (3, 2, 1)]
        assert [row[c.ITEM_ID] for row in (one, two, three)] == items[-3:]
        assert one[c.TIMESTAMP] <= two[c.TIMESTAMP] <= three[c.TIMESTAMP]
        read = [*items[: one[c.SEEN]], one[c.ITEM_ID]]
        assert read == items[:-2]  # neither what validates nor what tests, which have places behind it


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("split", [{"train": 0.5, "valid": 0.2}, {"folds": 2, "fold": 1}, {"folds": 2, "fold": 2}])
def test_whole_sessions_train_on_nothing_of_later(seed: int, split: dict[str, Any]) -> None:
    events = random_events(seed, rows=300, users=60, items=25, times=40)
    sets, liked = cut_up(events, of_task(split))
    of_set = {name: {row[c.USER_ID] for row in sets[name]} for name in c.SPLITS}
    assert all(of_set.values()) and sum(map(len, of_set.values())) == len(set().union(*of_set.values())) == len(liked)
    times = {user: [event.time for event in events if int(event.user) == user] for user in liked}
    last = {name: [max(times[user]) for user in of_set[name]] for name in c.SPLITS}
    for earlier, later in itertools.pairwise(c.SPLITS):
        assert max(last[earlier]) < min(last[later])  # sessions that end together are in one set
    trained = {item for user in of_set["train"] for item in liked[user]}
    for row in (row for name in c.SPLITS for row in sets[name]):
        items = liked[row[c.USER_ID]]
        assert row[c.SEEN] == len(items) - 1 >= 1 and row[c.ITEM_ID] == items[-1]
        assert set(items) <= trained


@pytest.mark.parametrize("split", [{"leave_one_out": True}, {"train": 0.5, "valid": 0.2}])
def test_blocks_of_any_size_are_cut_alike(split: dict[str, Any]) -> None:
    events = random_events(0, rows=300, users=60, items=25, times=40)
    assert cut_up(events, of_task(split), 1) == cut_up(events, of_task(split), 1000)


# Real data


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set RAYREC_DATA_ROOT")
def test_beauty_has_the_sessions_of_the_paper() -> None:
    data = DataConfig(task="next_item", dataset="amazon-beauty", sources=("x",))
    raw = open_dataset(data, 0, [REAL], [])
    known = fold_titles(raw.items())
    blocks = list(raw.interactions())
    survey = Survey((sightings(block, Rule(known[c.ITEM_ID].combine_chunks())) for block in blocks), reduced=False)
    vocabulary = Vocabulary(survey.users, survey.items, 1)
    sessions = s.sessions_of(pa.concat_tables([encode(block, vocabulary) for block in blocks]))
    core = found_core(s.without_repeats(sessions, (c.ITEM_ID, c.TIMESTAMP)), 5, 1000)
    assert (len(core), len(s.interactions(core))) == (22_363, 198_502) and not raw.is_timed
    assert len(np.unique(s.interactions(core)[c.ITEM_ID].to_numpy())) == len(known) == 12_101
    assert known[c.TITLE].null_count == 7
    sixth = found_core(sessions, 6, 1000)  # the file is a 5-core, so that nothing goes; 6 asks for more
    assert 0 < len(sixth) < 22_363 and s.lengths(sixth).min() >= 6
