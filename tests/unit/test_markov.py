"""MC by hand, and against dictionaries."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from rayrec.models.baselines import markov
from rayrec.models.baselines.markov import MarkovChain


def test_by_hand() -> None:
    # m = 3/5. Item 1: (1 + 3) / 7 = 4/7. Item 2: (2 + 3) / 8 = 5/8. Item 2 after 1: 3 rows, 2 likes.
    model = MarkovChain().fit([0, 1, 1, 2, 1], [1, 2, 2, 1, 2], [1, 1, 0, 0, 1])
    wanted = {
        (1, 2): (2 + 5 * Fraction(5, 8)) / 8,
        (2, 1): 5 * Fraction(4, 7) / 6,
        (0, 1): Fraction(4, 7),  # nothing before it: no transition, though a row was like that
        (9, 2): Fraction(5, 8),  # after an item never seen
        (2, 2): Fraction(5, 8),  # a pair never seen
        (1, 3): Fraction(3, 5),  # an item never seen
    }
    last, items = np.array(list(wanted)).T
    assert model.predict(last, items) == pytest.approx([float(value) for value in wanted.values()], abs=1e-15)


def rows(count: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    return generator.integers(0, 9, count), generator.integers(1, 12, count), generator.integers(0, 2, count)


def test_equals_dictionaries() -> None:
    last, items, labels = rows()
    seen, liked, pairs, liked_pairs = Counter(), Counter(), Counter(), Counter()
    for before, item, label in zip(last.tolist(), items.tolist(), labels.tolist(), strict=True):
        seen[item] += 1
        liked[item] += label
        pairs[before, item] += before > 0
        liked_pairs[before, item] += label * (before > 0)
    mean = sum(liked.values()) / len(labels)
    asked = [(before, item) for before in range(15) for item in range(15)]
    wanted = []
    for before, item in asked:
        own = (liked[item] + 5 * mean) / (seen[item] + 5)
        wanted.append((liked_pairs[before, item] + 5 * own) / (pairs[before, item] + 5))
    found = MarkovChain().fit(last, items, labels).predict(*np.array(asked).T)
    assert found == pytest.approx(wanted, abs=1e-14)


def test_blocks_in_any_order_are_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    last, items, labels = rows()
    whole = MarkovChain().fit(last, items, labels).predict(last, items)
    monkeypatch.setattr(markov, "_FOLD_ROWS", 50)  # so that they are added up several times
    blocks = MarkovChain()
    for block in (slice(500, 900), slice(0, 0), slice(0, 20), slice(20, 130), slice(130, 500)):
        blocks.update(last[block], items[block], labels[block])
    assert np.array_equal(whole, blocks.predict(last, items))


def test_fit_forgets() -> None:
    model = MarkovChain().fit([1, 1], [9, 9], [1, 1])
    assert model.fit([0, 1], [1, 1], [0, 1]).predict([1], [9])[0] == 0.5


def test_it_knows_no_transition_yet() -> None:
    assert MarkovChain().fit([0, 0], [1, 2], [1, 0]).predict([1], [3])[0] == 0.5


def test_scores_are_probabilities() -> None:
    ones = np.ones(1000, dtype=np.int64)
    model = MarkovChain().fit(ones, ones, ones)
    assert model.predict([1], [1])[0] == 1 - 1e-6


def test_refuses_what_it_cannot_know() -> None:
    with pytest.raises(ValueError, match="no training rows"):
        MarkovChain().predict([0], [0])
    for last, items in (([-1], [1]), ([1], [-1])):
        with pytest.raises(ValueError, match="id -1 is negative"):
            MarkovChain().fit(last, items, [1])
    with pytest.raises(ValueError, match="lengths must be equal"):
        MarkovChain().fit([1, 2], [1], [1])
    with pytest.raises(ValueError):
        MarkovChain().fit([1, 2], [1, 2], [1])
