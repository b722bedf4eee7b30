"""Cross-entropy in pieces against torch's own over the whole matrix."""

import pytest
import torch
from torch.nn import functional as F

from rayrec.models import catalogue_softmax
from rayrec.models.catalogue_softmax import catalogue_cross_entropy


@pytest.mark.parametrize("piece", [1, 40, 2**20], ids=["a row at a time", "uneven pieces", "whole"])
def test_values_and_gradients_are_those_of_the_whole_matrix(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_softmax, "_PIECE", piece)
    torch.manual_seed(0)
    states, items = 20 * torch.randn(13, 4), torch.randn(17, 4)  # logits so far apart that exp alone would overflow
    target = torch.randint(0, 17, (13,))
    found = []
    for loss in (catalogue_cross_entropy, lambda s, i, t: F.cross_entropy(s @ i.T, t)):
        leaves = states.clone().requires_grad_(), items.clone().requires_grad_()
        value = loss(*leaves, target)
        (3 * value).backward()
        found.append((value.detach(), leaves[0].grad, leaves[1].grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_position_has_no_loss() -> None:
    states, items = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = catalogue_cross_entropy(states, items, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and items.grad is not None and not items.grad.any()
