"""Full-catalogue ranking against sorting each row of scores."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rayrec.models.ranking import Catalogue, rank, top_k, topk
from rayrec.sessions import Sessions


def slow(scores: list[list[float]], k: int, prompts: list[list[int]], known: list[bool]) -> list[list[int]]:
    """Every row sorted by falling score and rising id."""
    found = []
    for row, own in zip(scores, prompts, strict=True):
        left = [item for item in range(1, len(row) + 1) if known[item - 1] and item not in own]
        found.append((sorted(left, key=lambda item: (-row[item - 1], item)) + [0] * k)[:k])
    return found


def vectors(users: int, items: int, ties: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """With ``ties``, of a few whole numbers, so that scores are exact in any order of summation and mostly equal."""
    generator = torch.Generator().manual_seed(seed)
    if not ties:
        return torch.randn(users, 8, generator=generator), torch.randn(items, 8, generator=generator)
    draw = [torch.randint(-1, 2, (rows, 3), generator=generator).float() for rows in (users, items)]
    return draw[0], draw[1]


def random_prompts(users: int, items: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, items + 1, (user % 6,), generator=generator).tolist() for user in range(users)]


@pytest.mark.parametrize("chunk", [2**14, 16, 7], ids=["whole catalogue", "chunks", "uneven chunks"])
@pytest.mark.parametrize("budget", [2**22, 100, 1], ids=["one block", "blocks", "one score at a time"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 10, 80])
def test_equals_sorting(k: int, ties: bool, budget: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_CHUNK", chunk)
    users_BD, items_VD = vectors(33, 64, ties)
    prompts, known = random_prompts(33, 64), [v % 9 != 4 for v in range(64)]
    scores = (users_BD @ items_VD.T).tolist()
    expected = slow(scores, k, prompts, known)
    held = Sessions.of(prompts)
    found = rank(users_BD, items_VD, k, prompts=held, known_V=torch.tensor(known), scores_at_once=budget)
    assert found.tolist() == expected
    assert rank(users_BD, items_VD, k).tolist() == slow(scores, k, [[]] * 33, [True] * 64)


@pytest.mark.parametrize("items", [999, 1000, 1007], ids=str)  # whole groups of columns, and some that are left
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 20, 130])
def test_groups_of_columns_hide_nothing(k: int, ties: bool, items: int) -> None:
    users_BD, items_VD = vectors(40, items, ties)
    prompts, known = random_prompts(40, items), [v % 9 != 4 for v in range(items)]
    expected = slow((users_BD @ items_VD.T).tolist(), k, prompts, known)
    assert rank(users_BD, items_VD, k, prompts=Sessions.of(prompts), known_V=torch.tensor(known)).tolist() == expected


def test_the_best_may_all_be_in_one_group() -> None:
    scores_BC = torch.zeros(1, 160)
    scores_BC[0, 7::20] = torch.arange(8.0)  # eight columns of one group of twenty
    values, columns = top_k(scores_BC, 9)
    assert columns.tolist() == [[147, 127, 107, 87, 67, 47, 27, 0, 1]] and values[0, :2].tolist() == [7, 6]


def test_a_catalogue_is_asked_again() -> None:
    users_BD, items_VD = vectors(30, 50, ties=False)
    known_V = torch.arange(50) % 3 > 0
    catalogue, prompts = Catalogue(items_VD, known_V), Sessions.of(random_prompts(30, 50))
    whole = catalogue.rank(users_BD, 5, prompts=prompts)
    halves = [catalogue.rank(users_BD[i : i + 15], 5, prompts=prompts.between(i, i + 15)) for i in (0, 15)]
    assert torch.cat(halves).equal(whole) and whole.equal(rank(users_BD, items_VD, 5, prompts=prompts, known_V=known_V))


def test_equal_scores_come_by_lower_id() -> None:
    assert rank(torch.zeros(2, 3), torch.randn(5000, 3), 20).tolist() == [list(range(1, 21))] * 2
    values, columns = top_k(torch.tensor([[1.0, 3, 3, 2, 3, 2], [0, -0.0, 0, 0, 0, 1]]), 4)
    assert values.tolist() == [[3, 3, 3, 2], [1, 0, 0, 0]] and columns.tolist() == [[1, 2, 4, 3], [5, 0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    users_BD, items_VD = (vector.to(dtype) for vector in vectors(9, 40, ties=True))
    scores = (users_BD @ items_VD.T).tolist()
    assert rank(users_BD, items_VD, 7).tolist() == slow(scores, 7, [[]] * 9, [True] * 40)


def test_nothing_left_is_zero() -> None:
    users_BD, items_VD = vectors(2, 3, ties=False)
    assert rank(users_BD, items_VD, 2, prompts=Sessions.of([[1, 2, 3], [3, 1]])).tolist() == [[0, 0], [2, 0]]
    assert rank(users_BD, items_VD[:0], 2).tolist() == [[0, 0], [0, 0]]
    assert rank(users_BD[:0], items_VD, 2).shape == (0, 2)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made meanwhile holds."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        made = out if isinstance(out, (tuple, list)) else [out]
        fresh = [one for one in made if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given]
        self.numel = max([self.numel, *(one.numel() for one in fresh)])
        return out


@pytest.mark.parametrize("ties", [False, True])
def test_no_tensor_is_larger_than_the_block(ties: bool) -> None:
    users_BD, items_VD = vectors(64, 50_000, ties)  # 3.2 million scores
    with Largest() as largest:
        rank(users_BD, items_VD, 5, prompts=Sessions.of([[1, 2]] * 64), scores_at_once=2**16)
    assert 2**14 <= largest.numel <= 2**16


def test_bad_input_is_refused() -> None:
    users_BD, items_VD = vectors(2, 5, ties=False)
    with pytest.raises(ValueError, match="1 prompts for 2 user vectors"):
        rank(users_BD, items_VD, 2, prompts=Sessions.of([[1]]))
    with pytest.raises(ValueError, match="item 6 is not in a catalogue of 5 items"):
        rank(users_BD, items_VD, 2, prompts=Sessions.of([[1], [6]]))
    users_BD[1, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        rank(users_BD, items_VD, 2)
    with pytest.raises(ValueError, match="NaN"):
        rank(users_BD, torch.randn(500, 8), 2)  # by groups of columns
