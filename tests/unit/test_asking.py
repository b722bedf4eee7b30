"""What LLMSeqPrompt's forms offer and answer with, by hand."""

import numpy as np
import pytest

from rayrec.errors import InputError
from rayrec.models.ranking.asking import Asked, Groups, ask
from rayrec.models.ranking.seqsim import LLMSeqSim
from rayrec.models.reductions import Rows, clusters
from rayrec.sessions import Index, Sessions
from rayrec.stages import Form

# Three heaps of names, at 0, 10 and 100 on a line; item 7 has no name.
PLACES = np.array([10.0, 0.0, 11.0, 1.0, 100.0, 12.0, np.nan, 104.0])
EMBEDDINGS: Rows = np.nan_to_num(np.stack([PLACES, np.ones(8)], axis=1) * [[1.0, not np.isnan(p)] for p in PLACES])
EMBEDDINGS = EMBEDDINGS.astype(np.float32)
TRAIN = Sessions.of([[3, 6, 2], [6, 3, 8], [4, 2, 7, 7, 7]])
LISTS = np.array([[3, 1, 6], [8, 4, 0]])


class Fixed:
    """A ranker of the lists that it is given."""

    def __init__(self, lists: Index) -> None:
        self.lists = lists

    def fit(self, train: Sessions, items: int) -> "Fixed":
        return self

    def rank(self, prompts: Sessions, k: int) -> Index:
        assert (len(prompts), k) == self.lists.shape
        return self.lists


def asked(form: Form, targets: list[int] | None, lists: Index = LISTS, seed: int = 0) -> Asked:
    prompts = Sessions.of([[2], [5, 1]])
    targets_S = None if targets is None else np.array(targets)
    groups = Groups(EMBEDDINGS, TRAIN, 3, seed=0)
    return ask(form, prompts, targets_S, lists.shape[1], similar=Fixed(lists), groups=groups, seed=seed)


def lists(sessions: Sessions | None) -> list[list[int]] | None:
    return None if sessions is None else [session.tolist() for session in sessions.each()]


def test_one_item_answers_with_the_target() -> None:
    assert lists(asked(Form.GENITEM, [4, 8]).answers) == [[4], [8]]
    for form in (Form.GENITEM, Form.GENLIST):
        assert asked(form, [4, 8]).offered is None
        assert asked(form, None) == Asked(None, None)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [([6, 2], [[6, 3, 1], [2, 8, 4]]), ([5, 8], [[5, 3, 1], [8, 4]]), ([3, 4], [[3, 1, 6], [4, 8]])],
    ids=str,
)
def test_a_list_is_led_by_the_target(targets: list[int], expected: list[list[int]]) -> None:
    """Whether it was in the list or not, and where the list was shorter than asked for."""
    assert lists(asked(Form.GENLIST, targets).answers) == expected
    found = asked(Form.RANK, targets)
    assert lists(found.answers) == expected
    offered = lists(found.offered)
    assert offered is not None and [sorted(row) for row in offered] == [sorted(row) for row in expected]


def test_what_is_to_rank_is_offered_in_an_order_of_its_own() -> None:
    long = np.tile(np.arange(1, 21), (2, 1))
    found = asked(Form.RANK, [20, 1], long)
    offered, answers = lists(found.offered), lists(found.answers)
    assert offered is not None and answers is not None and offered[0] != answers[0]
    assert lists(asked(Form.RANK, [20, 1], long).offered) == offered
    assert lists(asked(Form.RANK, [20, 1], long, seed=1).offered) != offered


def test_where_nothing_is_learned_the_target_is_not_told() -> None:
    found = asked(Form.RANK, None)
    offered = lists(found.offered)
    assert offered is not None and [sorted(row) for row in offered] == [[1, 3, 6], [4, 8]]
    assert found.answers is None and asked(Form.CLASS, None).answers is None


def test_clusters_are_called_by_their_most_popular_item() -> None:
    """Of 10, 11, 12: items 3 and 6 twice, item 3 first; of 0 and 1: item 2 twice; of 100 and 104: item 8 once."""
    groups = Groups(EMBEDDINGS, TRAIN, 3, seed=0)
    assert sorted(groups.called_C.tolist()) == [2, 3, 8]
    assert groups.nearest(np.array([1, 4, 5]), 3).tolist() == [[3, 2, 8], [2, 3, 8], [8, 3, 2]]
    assert groups.nearest(np.array([5]), 2).tolist() == [[8, 3]]
    found = asked(Form.CLASS, [5, 2])
    assert lists(found.answers) == [[8, 3, 2], [2, 3, 8]]
    assert lists(found.offered) == [groups.called_C.tolist()] * 2


def test_distances_are_to_the_means_of_clusters() -> None:
    """The slow way, for many items in many clusters."""
    rng = np.random.default_rng(0)
    rows: Rows = rng.normal(size=(60, 4)).astype(np.float32)
    groups = Groups(rows, Sessions.of([]), 7, seed=2)
    class_I = clusters(rows, 7, seed=2)
    centres = [rows[class_I == group].mean(axis=0) for group in range(7)]
    first = [int(np.flatnonzero(class_I == group)[0]) + 1 for group in range(7)]  # without events the lowest id
    assert groups.called_C.tolist() == first
    for item, found in zip(range(1, 61), groups.nearest(np.arange(1, 61), 7).tolist(), strict=True):
        order = sorted(range(7), key=lambda group: float(np.linalg.norm(rows[item - 1] - centres[group])))
        assert found == [first[group] for group in order]


def test_the_forms_rank_with_seqsim() -> None:
    """As they are used: LLMSeqSim is a ranker like any."""
    similar = LLMSeqSim(EMBEDDINGS, None)
    found = ask(Form.GENLIST, Sessions.of([[1]]), np.array([2]), 3, similar=similar)
    assert lists(found.answers) == [[2, *similar.rank(Sessions.of([[1]]), 2)[0].tolist()]]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_more_clusters_than_names_are_refused() -> None:
    with pytest.raises(InputError, match="clusters: 8 asked for of 7 items with a name"):
        Groups(EMBEDDINGS, TRAIN, 8, seed=0)
    same = np.ones((4, 2), np.float32)
    with pytest.raises(InputError, match="clusters: 2 asked for of fewer distinct names"):
        Groups(same, Sessions.of([]), 2, seed=0)
