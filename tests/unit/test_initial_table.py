"""A trainable item table that starts from name embeddings."""

import numpy as np
import pytest
import torch

from rayrec.config.model import EncoderConfig
from rayrec.errors import InputError
from rayrec.models.ranking.initial import initial_table
from rayrec.models.sasrec import SASRec

ROWS = np.array([[1, 2, 3], [0, 0, 0], [4, 5, 6]], np.float32)  # the second item has no name


def drawn(rows: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.Embedding(rows, 3, padding_idx=0).weight


def test_items_are_copied_and_all_else_is_as_drawn() -> None:
    before = drawn(5)  # padding, three items, a mask
    table = initial_table(before, ROWS)
    assert table[1].tolist() == [1, 2, 3] and table[3].tolist() == [4, 5, 6]
    for row in (0, 2, 4):
        assert torch.equal(table[row], before[row])
    assert before[0].tolist() == [0, 0, 0] and before[2].any() and before[4].any()
    assert torch.equal(before, drawn(5)) and not table.requires_grad


def test_it_starts_a_table_that_trains() -> None:
    model = SASRec(EncoderConfig(width=4, heads=1, blocks=1), items=3, max_len=5)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    model.item.weight.data.copy_(initial_table(model.item.weight, rows))
    assert np.array_equal(model.item_vectors(torch.tensor([1, 2, 3])).detach().numpy(), rows)
    model.encode(torch.tensor([[1, 2]])).sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.item.weight.grad
    assert gradient is not None and gradient[1:3].any() and not gradient[[0, 3]].any()


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
def test_what_does_not_fit_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="do not fit an item table of 3 items and width 3; reduce them"):
        initial_table(drawn(4), np.ones(shape, np.float32))
