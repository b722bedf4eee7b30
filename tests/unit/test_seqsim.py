"""LLMSeqSim against loops in plain Python: every weighting with every nearness, from the paper's formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from rayrec.errors import InputError
from rayrec.models.ranking.decay import Decay
from rayrec.models.ranking.ranker import Ranker
from rayrec.models.ranking.seqsim import LLMSeqSim, Nearness, session_vectors
from rayrec.models.reductions import Rows
from rayrec.sessions import Sessions

ITEMS, WIDTH, K = 60, 5, 8
PROMPTS = [[3], [7, 12], [5, 5, 9], list(range(1, 18)), [40, 2, 40, 31, 8, 60], [60, 59, 58, 57]]

# i: distance from the end, n: items of the session
WEIGHTS: dict[Decay | None, Callable[[int, int], float]] = {
    None: lambda i, n: 1.0 if i == 1 else 0.0,
    Decay.NONE: lambda i, n: 1.0,
    Decay.CONSTANT_LINEAR: lambda i, n: max(1e-5, 1 - 0.1 * (i - 1)),
    Decay.SCALING_LINEAR: lambda i, n: 1 - (i - 1) / n,
    Decay.SCALING_QUADRATIC: lambda i, n: (1 - (i - 1) / n) ** 2,
    Decay.LOG: lambda i, n: 1 / (math.log(i) + 1),
    Decay.HARMONIC: lambda i, n: 1 / i,
    Decay.HARMONIC_SQUARED: lambda i, n: 1 / i**2,
}

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


NEARNESS: dict[Nearness, Callable[[Vector, Vector], float]] = {
    Nearness.COSINE: lambda a, b: dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)),
    Nearness.DOT: dot,
    Nearness.EUCLIDEAN: lambda a, b: 1 / (1 + math.dist(a, b)),
}


def embeddings() -> Rows:
    """Rows of unlike length, so that the three kinds of nearness order them differently."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(ITEMS, WIDTH)) * rng.uniform(0.3, 2, size=(ITEMS, 1))).astype(np.float32)


EMBEDDINGS = embeddings()


def slow_vector(session: list[int], decay: Decay | None) -> Vector:
    n = len(session)
    weights = [WEIGHTS[decay](n - at, n) for at in range(n)]
    rows = [EMBEDDINGS[item - 1].tolist() for item in session]
    return [sum(w * row[d] for w, row in zip(weights, rows, strict=True)) / sum(weights) for d in range(WIDTH)]


def test_all_weightings_are_here() -> None:
    assert set(WEIGHTS) == {None, *Decay} and set(NEARNESS) == set(Nearness)


@pytest.mark.parametrize("decay", WEIGHTS)
def test_a_session_is_the_weighted_mean_of_its_items(decay: Decay | None) -> None:
    expected = [slow_vector(session, decay) for session in PROMPTS]
    np.testing.assert_allclose(session_vectors(Sessions.of(PROMPTS), EMBEDDINGS, decay), expected, atol=1e-6)


@pytest.mark.parametrize("nearness", NEARNESS)
@pytest.mark.parametrize("decay", WEIGHTS)
def test_lists_are_those_of_the_slow_way(decay: Decay | None, nearness: Nearness) -> None:
    ranker: Ranker = LLMSeqSim(EMBEDDINGS, decay, nearness)
    lists = ranker.fit(Sessions.of([]), ITEMS).rank(Sessions.of(PROMPTS), K)
    for session, ranked in zip(PROMPTS, lists.tolist(), strict=True):
        vector = slow_vector(session, decay)
        left = [item for item in range(1, ITEMS + 1) if item not in session]
        likeness = {item: NEARNESS[nearness](vector, EMBEDDINGS[item - 1].tolist()) for item in left}
        assert ranked == sorted(left, key=lambda item: -likeness[item])[:K]


def test_the_kinds_of_nearness_disagree() -> None:
    """Else the test above would not tell them apart."""
    lists = [LLMSeqSim(EMBEDDINGS, Decay.NONE, nearness).rank(Sessions.of(PROMPTS), K) for nearness in Nearness]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (lists[one] != lists[other]).any(axis=1).all()


def test_what_has_no_name_is_in_no_list_and_in_no_mean() -> None:
    rows = EMBEDDINGS.copy()
    rows[[3, 11]] = 0  # items 4 and 12
    for nearness in Nearness:
        lists = LLMSeqSim(rows, Decay.NONE, nearness).rank(Sessions.of([[7], [], [4, 12], [4, 7]]), ITEMS)
        assert not np.isin(lists, [4, 12]).any()
        assert (lists[0] > 0).sum() == ITEMS - 3
        assert not lists[[1, 2]].any()
    cosine = LLMSeqSim(rows, Decay.NONE).rank(Sessions.of([[7], [4, 7]]), K)
    assert cosine[0].tolist() == cosine[1].tolist()


def test_no_sessions_at_all() -> None:
    assert LLMSeqSim(EMBEDDINGS, None).rank(Sessions.of([]), K).shape == (0, K)


def test_another_catalogue_is_refused() -> None:
    with pytest.raises(InputError, match="name embeddings of 60 items for a catalogue of 61"):
        LLMSeqSim(EMBEDDINGS, None).fit(Sessions.of([]), 61)
    with pytest.raises(ValueError, match="item 61 is not in a catalogue of 60"):
        session_vectors(Sessions.of([[61]]), EMBEDDINGS, None)
