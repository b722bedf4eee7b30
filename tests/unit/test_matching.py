"""What a language model says as items of the catalogue: by hand, and against the slow way."""

from collections.abc import Sequence

import numpy as np
import pytest

from rayrec.models.ranking.matching import Matched, NameMatcher
from rayrec.models.reductions import Rows, unit_length
from rayrec.sessions import Sessions

# Items on a circle, ten degrees apart; 3 and 5 have one name, 7 has no embedding.
NAMES = ["a", "b", "twin", "d", "twin", "f", "blank"]


def at(*degrees: float) -> Rows:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


EMBEDDINGS = np.concatenate([at(0, 10, 20, 30, 20, 50), np.zeros((1, 2), np.float32)])
MATCHER = NameMatcher(NAMES, EMBEDDINGS)
UNKNOWN = {"near d": at(33)[0], "nothing": np.zeros(2, np.float32), "near a": at(-20)[0]}


def matched(
    said: Sequence[str], own: Sequence[int] = (), k: int = 6, last: bool = False, offered: Sequence[int] | None = None
) -> Matched:
    choice = None if offered is None else Sessions.of([offered])
    return MATCHER.match([said], Sessions.of([own]), k, UNKNOWN, offered=choice, replaced_last=last)


def told(found: Matched) -> list[int]:
    """Names that were said, unknown ones and barred ones, of all sessions."""
    return [int(counts.sum()) for counts in (found.said_S, found.unknown_S, found.barred_S)]


def items(found: Matched) -> list[int]:
    return [item for item in found.lists_SK[0].tolist() if item]


def test_names_are_their_items() -> None:
    found = matched(["f", "a", "twin", "twin"])
    assert found.lists_SK.tolist() == [[6, 1, 3, 5, 0, 0]]
    assert told(found) == [4, 0, 0]


def test_an_unknown_name_is_the_nearest_item() -> None:
    found = matched(["near d", "a"])
    assert items(found) == [4, 1]
    assert told(found) == [2, 1, 0]


def test_what_was_named_keeps_its_place() -> None:
    """Item 4 is the nearest, but comes by its own name; 3 and 5 are equally near, then comes 6."""
    assert items(matched(["near d", "d"])) == [3, 4]
    assert items(matched(["near d", "near d", "near d", "d"])) == [3, 5, 6, 4]


def test_repeated_names_and_the_prompts_own_fall_to_the_next_best() -> None:
    found = matched(["a", "a", "d", "d"], own=[2])
    assert items(found) == [1, 3, 4, 5]
    assert told(found) == [4, 0, 2]
    assert items(matched(["a"], own=[1])) == [2]


def test_replacements_may_come_last() -> None:
    assert items(matched(["near d", "a", "a", "f"], last=True)) == [1, 6, 4, 2]
    assert items(matched(["near d", "a", "a", "f"])) == [4, 1, 2, 6]


def test_only_what_is_offered() -> None:
    found = matched(["near d", "a", "b", "twin"], offered=[2, 5, 6])
    assert items(found) == [6, 2, 5]  # nothing is left for "a"
    assert told(found) == [4, 1, 1]
    assert items(matched(["near d"], own=[6, 5], offered=[2, 5, 6])) == [2]


def test_no_more_than_asked_for_is_looked_at() -> None:
    found = matched(["a", "b", "d", "f"], k=2)
    assert found.lists_SK.tolist() == [[1, 2]] and told(found) == [2, 0, 0]


def test_what_is_like_nothing_leaves_no_item() -> None:
    """Nor does an item without an embedding stand for another; by its name it is found."""
    found = matched(["nothing", "a", "blank", "blank"])
    assert items(found) == [1, 7]
    assert told(found) == [4, 1, 1]
    everything = matched(["near a"] * 8, k=8)
    assert items(everything) == [1, 2, 3, 5, 4, 6]


def test_nobody_says_anything() -> None:
    found = MATCHER.match([[], ["a"]], Sessions.of([[1], []]), 2, {})
    assert found.lists_SK.tolist() == [[0, 0], [1, 0]] and found.said_S.tolist() == [0, 1]
    assert MATCHER.match([], Sessions.of([]), 2, {}).lists_SK.shape == (0, 2)
    assert told(MATCHER.match([], Sessions.of([]), 2, {})) == [0, 0, 0]


def test_unknown_names() -> None:
    assert MATCHER.unknown([["x", "a", "w"], [], ["x", "A"]]) == ["A", "w", "x"]


def test_other_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="7 names, 6 embeddings"):
        NameMatcher(NAMES, EMBEDDINGS[:6])


def slow(
    names: Sequence[str], rows: Rows, said: Sequence[str], own: Sequence[int], strange: dict[str, Rows]
) -> list[int]:
    """One session, word for word as the docstring has it."""
    left = [item for item in range(1, len(names) + 1) if item not in own]
    places: list[int | None] = []
    for name in said:
        there = [item for item in left if names[item - 1] == name]
        places.append(there[0] if there else None)
        left = [item for item in left if item not in there[:1]]
    for place, name in enumerate(said):
        if places[place] is None:
            query = rows[names.index(name)] if name in names else strange[name]
            nearest = max(left, key=lambda item: float(rows[item - 1] @ query))
            places[place] = nearest
            left.remove(nearest)
    return [item for item in places if item]


def test_lists_are_those_of_the_slow_way() -> None:
    rng = np.random.default_rng(0)
    rows = unit_length(rng.normal(size=(40, 6)).astype(np.float32))
    names = [f"item {i % 37}" for i in range(40)]  # three names twice
    strange = {f"strange {i}": unit_length(rng.normal(size=(1, 6)).astype(np.float32))[0] for i in range(9)}
    known = sorted({*names, *strange})
    said = [[known[i] for i in rng.integers(0, len(known), 10)] for _ in range(30)]
    prompts = [rng.choice(np.arange(1, 41), size, replace=False).tolist() for size in rng.integers(0, 12, 30)]
    found = NameMatcher(names, rows).match(said, Sessions.of(prompts), 10, strange)
    expected = [slow(names, rows, one, own, strange) for one, own in zip(said, prompts, strict=True)]
    assert found.lists_SK.tolist() == expected
    for row, own in zip(found.lists_SK.tolist(), prompts, strict=True):
        assert len(set(row)) == 10 and not set(row) & {0, *own}
    assert found.unknown_S.tolist() == [sum(name in strange for name in one) for one in said]
    assert found.barred_S.sum() > 0 and found.said_S.tolist() == [10] * 30
