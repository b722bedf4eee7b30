"""Our dropout against what dropout is."""

import numpy as np
import pytest
import torch
from torch import nn

from rayrec.models.dropout import Dropout, replace_dropouts

ROWS = torch.ones(300, 1001)  # 1001: not a multiple of the four numbers of a draw


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_the_rate_and_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    found = Dropout(rate)(ROWS)
    count = ROWS.numel()
    assert abs((found == 0).sum() - rate * count) < 5 * (count * rate * (1 - rate)) ** 0.5
    torch.testing.assert_close(found[found != 0], torch.full_like(found[found != 0], 1 / (1 - rate)), rtol=1e-3, atol=0)
    dropped = (found == 0).double()
    for side in (0, 1):  # rows and columns alike: no pattern of the generator shows
        spread = dropped.mean(side).std() / (rate * (1 - rate) / ROWS.shape[side]) ** 0.5
        assert 0.8 < spread < 1.2


def test_it_follows_from_torchs_seed() -> None:
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(ROWS), layer(ROWS)
    torch.manual_seed(3)
    assert torch.equal(layer(ROWS), first) and torch.equal(layer(ROWS), second) and not torch.equal(first, second)


def test_the_draw_is_16_bits_of_a_seeded_generator() -> None:
    """By hand, number for number: a draw of another order would be another result for the same seed."""
    torch.manual_seed(3)
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    words = [int(generator.random_raw()) for _ in range(6)]
    quarters = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)][:21]
    expected = [0.0 if quarter < round(0.3 * 2**16) else 2**16 / (2**16 - round(0.3 * 2**16)) for quarter in quarters]
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(torch.ones(3, 7)), torch.tensor(expected).view(3, 7))


@pytest.mark.parametrize("learns", [True, False])
def test_a_sum_with_what_is_kept(learns: bool) -> None:
    layer, found = Dropout(0.4).train(learns), []
    for add in (lambda states, values: states + layer(values), layer.onto):
        torch.manual_seed(3)
        inputs = torch.randn(2, 9, 5, requires_grad=True)
        torch.manual_seed(3)
        sums = add(*inputs)
        (grad,) = torch.autograd.grad(sums.square().sum(), inputs)
        found.append((sums, grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_goes_where_the_values_went() -> None:
    values = torch.randn(7, 5, requires_grad=True)
    found = Dropout(0.4)(values)
    found.sum().backward()
    torch.testing.assert_close(values.grad * values.detach(), found.detach())
    assert (values.grad == 0).any() and (values.grad > 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_stay(dtype: torch.dtype) -> None:
    assert Dropout(0.1)(ROWS.to(dtype)).dtype is dtype


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    assert Dropout(0.5).eval()(ROWS) is ROWS or torch.equal(Dropout(0.5).eval()(ROWS), ROWS)
    assert torch.equal(Dropout(0.0)(ROWS), ROWS)


@pytest.mark.parametrize("onto", [False, True])
def test_a_compiled_graph_does_not_break_at_it(onto: bool) -> None:
    layer = Dropout(0.5)
    run = torch.compile(lambda x: layer.onto(x, x) if onto else layer(x), backend="aot_eager", fullgraph=True)
    found = run(ROWS) - (1.0 if onto else 0.0)
    assert set(found.unique().tolist()) == {0.0, 2.0}


def test_a_rate_next_to_one_stays_finite() -> None:
    assert Dropout(0.999999)(ROWS).isfinite().all()


def test_every_dropout_of_a_model_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.ModuleDict({"x": nn.Dropout(0.1)}), Dropout(0.2))
    replace_dropouts(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [type(module) for module in found] == [Dropout] * 3 and [m.p for m in found] == [0.3, 0.1, 0.2]
