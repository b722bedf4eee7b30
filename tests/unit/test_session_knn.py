"""SKNN and V-SKNN against a slow loop, and by hand."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from rayrec.models.ranking import Decay, Ranker, SessionKNN, Similarity, neighbours
from rayrec.sessions import Sessions

Lists = list[list[int]]

# i counts from the session's end, n is its length.
DECAYS: dict[Decay, Callable[[int, int], float]] = {
    Decay.NONE: lambda i, n: 1,
    Decay.CONSTANT_LINEAR: lambda i, n: max(1e-5, 1 - (i - 1) / 10),
    Decay.SCALING_LINEAR: lambda i, n: 1 - (i - 1) / n,
    Decay.SCALING_QUADRATIC: lambda i, n: (1 - (i - 1) / n) ** 2,
    Decay.LOG: lambda i, n: 1 / (math.log(i) + 1),
    Decay.HARMONIC: lambda i, n: 1 / i,
    Decay.HARMONIC_SQUARED: lambda i, n: 1 / i**2,
}


def slow(
    train: Lists,
    prompt: list[int],
    k: int,
    *,
    neighbours: int,
    sample: int | None,
    decay: Decay,
    similarity: Similarity,
    idf: bool,
) -> list[int]:
    """One prompt's list, the obvious way."""
    weight = {item: DECAYS[decay](len(prompt) - at, len(prompt)) for at, item in enumerate(prompt)}  # the last wins
    like = {}
    for session in reversed(range(len(train))):
        shared = sorted(set(train[session]) & set(prompt))
        if shared and (sample is None or len(like) < sample):
            like[session] = sum(weight[item] for item in shared)
            if similarity is Similarity.COSINE:
                like[session] /= math.sqrt(len(set(train[session])))
    nearest = sorted(like, key=lambda session: (-like[session], -session))[:neighbours]
    scores: dict[int, float] = defaultdict(float)
    for session in nearest:
        for item in set(train[session]) - set(prompt):
            scores[item] += like[session]
    if idf:
        for item in scores:
            scores[item] *= 1 + math.log(len(train) / sum(item in session for session in train))
    found = sorted(scores, key=lambda item: (-scores[item], item))[:k]
    return found + [0] * (k - len(found))


def random_sessions(seed: int, sessions: int, items: int) -> Lists:
    """Of skewed popularity and up to eight events, some of them repeats."""
    generator = np.random.default_rng(seed)
    return [
        np.ceil(items * generator.random(generator.integers(1, 9)) ** 2).astype(int).tolist() for _ in range(sessions)
    ]


@pytest.mark.parametrize("entries", [1, 200, 2**20], ids=["a prompt at a time", "uneven blocks", "one block"])
@pytest.mark.parametrize("similarity", Similarity)
@pytest.mark.parametrize("decay", Decay)
def test_equals_a_slow_loop(
    decay: Decay, similarity: Similarity, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_ENTRIES", entries)
    train, prompts = random_sessions(0, 120, 40), random_sessions(1, 50, 45)  # the last five items are in no training
    for sample, nearest, idf in ((None, 10, False), (15, 5, True), (1000, 1000, False)):
        ranker: Ranker = SessionKNN(neighbours=nearest, sample=sample, decay=decay, similarity=similarity, idf=idf)
        found = ranker.fit(Sessions.of(train), 45).rank(Sessions.of(prompts), 12).tolist()
        options = {"neighbours": nearest, "sample": sample, "decay": decay, "similarity": similarity, "idf": idf}
        assert found == [slow(train, prompt, 12, **options) for prompt in prompts]  # type: ignore[arg-type]


def test_by_hand() -> None:
    train = [[1, 2], [1, 3, 4, 5], [2, 3], [2, 6]]
    prompts = Sessions.of([[1, 2]])
    dot = SessionKNN(similarity=Similarity.DOT, neighbours=2).fit(Sessions.of(train), 6)
    # Session 0 shares two items and has nothing else; of the others, one each, session 3 is the latest.
    assert dot.rank(prompts, 3).tolist() == [[6, 0, 0]]
    cosine = SessionKNN(neighbours=4).fit(Sessions.of(train), 6)
    # Item 3 has 1/sqrt 4 + 1/sqrt 2, item 6 has 1/sqrt 2, items 4 and 5 have 1/2.
    assert cosine.rank(prompts, 5).tolist() == [[3, 6, 4, 5, 0]]
    decayed = SessionKNN(neighbours=4, decay=Decay.HARMONIC, similarity=Similarity.DOT).fit(Sessions.of(train), 6)
    # Item 1 weighs 1/2, item 2 weighs 1: item 3 has 3/2, item 6 has 1, items 4 and 5 have 1/2.
    assert decayed.rank(prompts, 5).tolist() == [[3, 6, 4, 5, 0]]
    # The other way round item 2 weighs 1/2: item 3 has 3/2, items 4 and 5 have 1, item 6 has 1/2.
    assert decayed.rank(Sessions.of([[2, 1]]), 5).tolist() == [[3, 4, 5, 6, 0]]


def test_rare_items_gain_by_idf() -> None:
    train = [[1, 2], [2, 3], [2, 4], [1, 3]]
    plain, weighted = (
        SessionKNN(idf=idf, similarity=Similarity.DOT).fit(Sessions.of(train), 4) for idf in (False, True)
    )
    # Prompt [2, 3]: item 1 from two neighbours, item 4 from one. With idf 1 + ln(4 / 2) and 1 + ln 4: 3.39 and 2.39.
    assert plain.rank(Sessions.of([[2, 3]]), 2).tolist() == weighted.rank(Sessions.of([[2, 3]]), 2).tolist() == [[1, 4]]
    # Prompt [2]: one neighbour each for 1, 3 and 4, so that the rarest leads.
    assert plain.rank(Sessions.of([[2]]), 3).tolist() == [[1, 3, 4]]
    assert weighted.rank(Sessions.of([[2]]), 3).tolist() == [[4, 1, 3]]


def test_prompts_without_a_claim_have_empty_lists() -> None:
    ranker = SessionKNN().fit(Sessions.of([[1, 2], [1]]), 4)
    assert ranker.rank(Sessions.of([[3], [], [2, 1], [1]]), 2).tolist() == [[0, 0], [0, 0], [0, 0], [2, 0]]
    assert ranker.rank(Sessions.of([]), 2).shape == (0, 2)
    assert SessionKNN(idf=True).fit(Sessions.of([]), 4).rank(Sessions.of([[1]]), 2).tolist() == [[0, 0]]


def test_a_block_is_small_even_for_the_most_popular_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ENTRIES", 1000)
    train = Sessions.of([[1, 2 + n % 5] for n in range(400)])
    ranker, held = SessionKNN(neighbours=10).fit(train, 9), []
    scores = ranker._scores

    def watched(prompts: Sessions) -> object:
        held.append(sum(400 for item in prompts.items if item == 1))
        return scores(prompts)

    monkeypatch.setattr(ranker, "_scores", watched)
    ranker.rank(Sessions.of([[1] for _ in range(20)]), 3)
    assert sum(held) == 20 * 400 and max(held) <= 1000 + 400


def test_ids_outside_the_catalogue_are_refused() -> None:
    for ranker, sessions in ((SessionKNN().fit, [[4]]), (SessionKNN().fit(Sessions.of([[1]]), 3).rank, [[4]])):
        with pytest.raises(ValueError, match="item 4 is not in a catalogue of 3 items"):
            ranker(Sessions.of(sessions), 3)
    with pytest.raises(ValueError, match="item 1 is not in a catalogue of 0 items"):
        SessionKNN().rank(Sessions.of([[1]]), 1)
