"""MostPopular against a loop."""

import numpy as np
import pytest

from rayrec.models.ranking import MostPopular, Ranker
from rayrec.sessions import Sessions


def test_by_hand() -> None:
    ranker: Ranker = MostPopular().fit(Sessions.of([[3, 2], [3, 5], [2, 3, 1]]), items=6)
    # Item 3 three times, 2 twice, 1 and 5 once each; 4 and 6 never.
    lists = ranker.rank(Sessions.of([[4], [3], [2, 5, 2], [1, 2, 3, 5], []]), 3)
    assert lists.tolist() == [[3, 2, 1], [2, 1, 5], [3, 1, 0], [0, 0, 0], [3, 2, 1]]
    assert ranker.rank(Sessions.of([[4]]), 6).tolist() == [[3, 2, 1, 5, 0, 0]]


@pytest.mark.parametrize("k", [1, 7, 40])
def test_equals_a_loop(k: int) -> None:
    generator = np.random.default_rng(k)
    train = [generator.integers(1, 31, generator.integers(1, 6)).tolist() for _ in range(40)]
    prompts = [generator.integers(1, 36, generator.integers(0, 25)).tolist() for _ in range(60)]
    counts = Sessions.of(train).counts(35)
    order = sorted((item for item in range(1, 36) if counts[item]), key=lambda item: (-counts[item], item))
    expected = [([item for item in order if item not in prompt] + [0] * k)[:k] for prompt in prompts]
    assert MostPopular().fit(Sessions.of(train), 35).rank(Sessions.of(prompts), k).tolist() == expected


def test_fitting_again_forgets() -> None:
    ranker = MostPopular().fit(Sessions.of([[1, 1]]), 3).fit(Sessions.of([[2]]), 3)
    assert ranker.rank(Sessions.of([[3]]), 2).tolist() == [[2, 0]]


def test_ids_outside_the_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="item 4 is not in a catalogue of 3 items"):
        MostPopular().fit(Sessions.of([[4]]), 3)
    with pytest.raises(ValueError, match="item 4 is not in a catalogue of 3 items"):
        MostPopular().fit(Sessions.of([[1]]), 3).rank(Sessions.of([[4]]), 1)
    with pytest.raises(ValueError, match="item 1 is not in a catalogue of 0 items"):
        MostPopular().rank(Sessions.of([[1]]), 1)
