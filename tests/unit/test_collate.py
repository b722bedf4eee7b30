"""Rows by id and their tensors, each against a reference that is slow and obvious."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrec.batch import Batch
from rayrec.data import columns as c
from rayrec.data.collate import Cut, collate
from rayrec.data.rows import HISTORY, OpenRows, RowSource
from rayrec.stages import Stream

HISTORIES = [[5, 6, 7], [], [8], [1, 2, 3, 4]]
TOKENS = [[11, 12, 13, 14], [21, 22], [31, 32, 33], [41, 42, 43, 44, 45, 46]]
SHARED = pa.array([1, 2, 3, 4])
PLACES = [(1, 3), (0, 2), (2, 2), (0, 6)]  # in front, at the end, both at once


def lists(values: list[list[int]]) -> pa.Array:
    return pa.array(values, pa.list_(pa.int32()))


def table(**more: Any) -> pa.Table:
    fixed = {
        c.USER_ID: pa.array([0, 3, c.UNKNOWN_USER, 1], pa.int32()),
        c.ITEM_ID: pa.array([9, 8, 7, 6], pa.int32()),
        c.LABEL: pa.array([1, 0, 0, 1], pa.int8()),
        HISTORY: lists(HISTORIES),
    }
    return pa.table(fixed | more)


def hybrid() -> pa.Table:
    user_at, item_at = (pa.array(places, pa.int32()) for places in zip(*PLACES, strict=True))
    return table(
        **{
            c.SHARED: SHARED,
            c.HYBRID_TOKENS: lists(TOKENS),
            c.USER_AT: user_at,
            c.TITLE_AT: user_at,
            c.ITEM_AT: item_at,
        }
    )


def text() -> pa.Table:
    return table(
        **{c.SHARED: SHARED, c.TEXT_TOKENS: lists(TOKENS), c.TEXT_TITLE_AT: pa.array([1, 1, 2, 5], pa.int32())}
    )


def whole(of: pa.Table, soft_tokens: int = 1) -> Batch:
    """With prompts in one piece."""
    return collate(of, soft_tokens, Cut.NOWHERE)


# Padding


def test_histories_are_padded_on_the_left() -> None:
    batch = whole(table())
    assert batch.history_BL.tolist() == [[0, 5, 6, 7], [0, 0, 0, 0], [0, 0, 0, 8], [1, 2, 3, 4]]
    assert batch.user_B.tolist() == [1, 4, 0, 2]  # 0: the unknown user
    assert batch.item_B.tolist() == [9, 8, 7, 6]
    assert batch.label_B.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (batch.history_BL.dtype, batch.item_B.dtype, batch.label_B.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert batch.prompt is None


def test_a_batch_of_empty_histories_keeps_one_place() -> None:
    assert whole(table().slice(1, 1)).history_BL.tolist() == [[0]]


def test_text_prompts_are_padded_on_the_right() -> None:
    prompt = whole(text()).prompt
    assert prompt is not None and prompt.soft_at_B2K is None
    assert prompt.length_B.tolist() == [4, 2, 3, 6]
    assert prompt.tokens_BT.tolist() == [row + [0] * (6 - len(row)) for row in TOKENS]


def test_a_slice_is_a_batch_of_its_own() -> None:
    """Micro-batches are slices of a fetched table, whose lists do not begin at offset 0."""
    part = whole(hybrid().slice(2, 2), 2)
    alone = whole(pa.Table.from_pylist(hybrid().slice(2, 2).to_pylist(), schema=hybrid().schema), 2)
    assert part.history_BL.tolist() == alone.history_BL.tolist() == [[0, 0, 0, 8], [1, 2, 3, 4]]
    assert part.prompt.tokens_BT.tolist() == alone.prompt.tokens_BT.tolist()
    assert part.prompt.soft_at_B2K.tolist() == alone.prompt.soft_at_B2K.tolist()


def test_chunks_make_no_difference() -> None:
    one, chunked = whole(hybrid(), 3), whole(pa.concat_tables([hybrid().slice(0, 1), hybrid().slice(1)]), 3)
    assert one.history_BL.tolist() == chunked.history_BL.tolist()
    assert one.prompt.tokens_BT.tolist() == chunked.prompt.tokens_BT.tolist()


# Soft tokens


@pytest.mark.parametrize("soft", [1, 3])
def test_places_of_soft_tokens(soft: int) -> None:
    prompt = whole(hybrid(), soft).prompt
    width = max(map(len, TOKENS)) + 2 * soft
    for row, (tokens, (user_at, item_at)) in enumerate(zip(TOKENS, PLACES, strict=True)):
        user, item = [-1] * soft, [-2] * soft
        opened = tokens[:user_at] + user + tokens[user_at:item_at] + item + tokens[item_at:]
        assert prompt.length_B[row] == len(opened)
        expected = opened + [0] * (width - len(opened))
        places = prompt.soft_at_B2K[row]
        assert places.tolist() == [[i for i, token in enumerate(expected) if token == mark] for mark in (-1, -2)]
        found = prompt.tokens_BT[row].clone()
        found[places[0]], found[places[1]] = -1, -2
        assert found.tolist() == expected


def test_cells_and_what_fills_them() -> None:
    assert (whole(table()).cells, whole(table()).filled) == (16, 8)
    batch = whole(hybrid(), 3)
    assert (batch.cells, batch.filled) == (4 * 12, 15 + 4 * 6)
    assert batch.rows == 4


def test_a_batch_moves_whole() -> None:
    for made in (whole(table()), whole(text()), whole(hybrid(), 1)):
        moved = made.to(torch.device("meta"))
        tensors = [moved.user_B, moved.history_BL, moved.item_B, moved.label_B]
        if moved.prompt:
            tensors += [moved.prompt.tokens_BT, moved.prompt.length_B]
            tensors += [] if moved.prompt.soft_at_B2K is None else [moved.prompt.soft_at_B2K]
        assert all(tensor.is_meta for tensor in tensors)
        assert (moved.prompt is None) == (made.prompt is None)
        assert isinstance(moved, Batch)


# Rows by id


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[dict[str, Any]], list[list[int]]]:
    """A folder as ``prepare`` and ``write_prompts`` leave it, with its rows and what each user liked."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(6)
    liked = [rng.integers(1, 50, size).tolist() for size in (0, 7, 3, 12, 1)]
    rows = [
        {
            c.USER_ID: int(user),
            c.ITEM_ID: int(rng.integers(1, 50)),
            c.RATING: 4.0,
            c.LABEL: int(rng.integers(0, 2)),
            c.TIMESTAMP: i,
            c.SEEN: int(rng.integers(0, len(liked[user]) + 1)),
            c.IS_WARM: True,
            c.IS_STRICT_COLD: False,
        }
        for i, user in enumerate(rng.integers(0, len(liked), 60))
    ]
    prompts = [
        {
            c.TEXT_TOKENS: rng.integers(0, 99, 3 + i % 4).tolist(),
            c.HYBRID_TOKENS: rng.integers(0, 99, 5 + i % 7).tolist(),
            c.USER_AT: i % 3,
            c.ITEM_AT: 4,
            c.TITLE_AT: 3,
            c.TEXT_TITLE_AT: i % 2,
        }
        for i in range(len(rows))
    ]
    users = [{c.USER_ID: i, c.SOURCE_ID: f"u{i}", c.LIKED: items} for i, items in enumerate(liked)]
    folder = tmp_path / "data"
    (folder / "prompts").mkdir(parents=True)
    # Small row groups and a memory map of several blocks: what is scattered must still come in order.
    pq.write_table(pa.Table.from_pylist(rows, c.ROWS_SCHEMA), folder / "train.parquet", row_group_size=16)
    pq.write_table(pa.Table.from_pylist(users, c.USERS_SCHEMA), folder / "users.parquet", row_group_size=2)
    pq.write_table(
        pa.Table.from_pylist(prompts, c.PROMPTS_SCHEMA), folder / "prompts" / "train.parquet", row_group_size=16
    )
    return str(folder), [row | prompt for row, prompt in zip(rows, prompts, strict=True)], liked


def opened(prepared: Any, stream: Stream, max_len: int = 4) -> OpenRows:
    return RowSource(prepared[0], "train", stream, max_len).open()


IDS = np.array([59, 0, 17, 17, 3, 40, 58, 1, 16, 15])


@pytest.mark.parametrize("max_len", [1, 4, 100])
def test_a_history_is_the_newest_of_what_was_liked_before(prepared: Any, max_len: int) -> None:
    _, rows, liked = prepared
    found = opened(prepared, Stream.INTERACTIONS, max_len).fetch(IDS)
    expected = [liked[rows[i][c.USER_ID]][: rows[i][c.SEEN]][-max_len:] for i in IDS]
    assert found[HISTORY].to_pylist() == expected
    assert [] in expected
    assert max(map(len, expected)) == min(max_len, max(rows[i][c.SEEN] for i in IDS)) > 0
    assert found[c.ROW].to_pylist() == IDS.tolist()
    for name in (c.USER_ID, c.ITEM_ID, c.LABEL):
        assert found[name].to_pylist() == [rows[i][name] for i in IDS]


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        (Stream.INTERACTIONS, []),
        (Stream.TEXT_PROMPTS, [c.SHARED, c.TEXT_TOKENS, c.TEXT_TITLE_AT]),
        (Stream.HYBRID_PROMPTS, [c.SHARED, c.HYBRID_TOKENS, c.USER_AT, c.TITLE_AT, c.ITEM_AT]),
    ],
)
def test_a_stream_fetches_what_it_reads(prepared: Any, stream: Stream, names: list[str]) -> None:
    found = opened(prepared, stream).fetch(IDS)
    assert found.column_names == [c.ROW, c.USER_ID, c.ITEM_ID, c.LABEL, HISTORY, *names]
    for name in set(names) - {c.SHARED}:
        assert found[name].to_pylist() == [prepared[1][i][name] for i in IDS]
    assert whole(found).rows == len(IDS)


def test_rows_of_one_history_and_no_others_share_a_number(prepared: Any) -> None:
    rows = prepared[1]
    numbers = opened(prepared, Stream.TEXT_PROMPTS).shared
    keys = [(row[c.USER_ID], row[c.SEEN]) for row in rows]
    assert len(set(keys)) < len(keys)
    for i, j in itertools.combinations(range(len(rows)), 2):
        assert (numbers[i] == numbers[j]) == (keys[i] == keys[j])


def test_lengths_are_those_of_what_is_read(prepared: Any) -> None:
    _, rows, _ = prepared
    expected = {
        Stream.INTERACTIONS: [min(row[c.SEEN], 4) for row in rows],
        Stream.TEXT_PROMPTS: [len(row[c.TEXT_TOKENS]) for row in rows],
        Stream.HYBRID_PROMPTS: [len(row[c.HYBRID_TOKENS]) for row in rows],
    }
    for stream, lengths in expected.items():
        assert opened(prepared, stream).lengths.tolist() == lengths


def test_a_frame_holds_all_that_is_stored(prepared: Any) -> None:
    rows = opened(prepared, Stream.INTERACTIONS)
    assert len(rows) == 60
    assert rows.user_ids.tolist() == [row[c.USER_ID] for row in prepared[1]]
    frame = rows.frame(IDS)
    assert frame.column_names == c.ROWS_SCHEMA.names
    assert frame.to_pylist() == [{name: prepared[1][i][name] for name in c.ROWS_SCHEMA.names} for i in IDS]


def test_no_rows_can_be_fetched(prepared: Any) -> None:
    assert opened(prepared, Stream.INTERACTIONS).fetch(np.array([], dtype=np.int64)).num_rows == 0


def test_the_copy_in_the_cache_is_made_once_and_follows_the_file(prepared: Any, tmp_path: Path) -> None:
    opened(prepared, Stream.INTERACTIONS)
    copies = sorted((tmp_path / "cache" / "rows").iterdir())
    assert len(copies) == 2 and all(path.suffix == ".arrow" for path in copies)  # rows and users
    OpenRows(RowSource(prepared[0], "train", Stream.INTERACTIONS, 9))
    assert sorted((tmp_path / "cache" / "rows").iterdir()) == copies
