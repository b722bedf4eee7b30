"""Sessions as flat arrays."""

import numpy as np
import pytest

from rayrec.sessions import Sessions


def test_lists_and_arrays_are_the_same_sessions() -> None:
    sessions = Sessions.of([[3, 1], [], [2, 2, 5]])
    assert len(sessions) == 3
    assert sessions.items.tolist() == [3, 1, 2, 2, 5] and sessions.offsets.tolist() == [0, 2, 2, 5]
    assert sessions.lengths.tolist() == [2, 0, 3]
    assert sessions.owners.tolist() == [0, 0, 2, 2, 2]
    assert sessions.counts(6).tolist() == [0, 1, 2, 1, 0, 1, 0]


def test_a_block_is_the_sessions_it_was_cut_from() -> None:
    sessions = Sessions.of([[3, 1], [], [2, 2, 5], [4]])
    block = sessions.between(1, 3)
    assert block.items.tolist() == [2, 2, 5] and block.offsets.tolist() == [0, 0, 3]
    assert np.shares_memory(block.items, sessions.items)
    assert len(sessions.between(4, 4)) == 0


@pytest.mark.parametrize(("count", "kept"), [(1, [[1], [], [5], [4]]), (2, [[3, 1], [], [2, 5], [4]])])
def test_the_newest_items_come_last(count: int, kept: list[list[int]]) -> None:
    newest = Sessions.of([[3, 1], [], [2, 2, 5], [4]]).newest(count)
    assert [session.tolist() for session in newest.each()] == kept


def test_no_sessions_are_fine() -> None:
    empty = Sessions.of([])
    assert len(empty) == 0 and empty.counts(2).tolist() == [0, 0, 0] and empty.owners.tolist() == []


@pytest.mark.parametrize(
    ("items", "offsets", "message"),
    [
        ([1, 2], [0, 1], "offsets must go from 0 to 2"),
        ([1, 2], [1, 2], "offsets must go from 0 to 2"),
        ([1, 2], [], "offsets must go from 0 to 2"),
        ([1, 2], [0, 2, 1, 2], "must not fall"),
        ([1, 0], [0, 2], "item 0: ids start at 1"),
        ([1.0, 2.0], [0, 2], "float64"),
    ],
)
def test_bad_arrays_are_refused(items: list[float], offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sessions(np.array(items), np.array(offsets, dtype=np.int64))


def test_an_id_outside_the_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match="item 5 is not in a catalogue of 4 items"):
        Sessions.of([[1, 5]]).counts(4)
