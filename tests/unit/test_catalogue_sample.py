"""Losses against a sample of the catalogue: the formulas in slow loops, and where all is drawn, the softmax."""

import itertools
import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.catalogue_sample import Sampled, gbce_loss, sampled_logits, sampled_softmax_loss
from rayrec.models.objectives import gbce, sampled_softmax, softmax
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build_encoder
from rayrec.stages import EncoderKind

ITEMS, KINDS = 30, [EncoderKind.SASREC, EncoderKind.GRU]
HISTORY = torch.tensor([[0, 0, 0, 3], [1, 2, 3, 4], [0, 7, 7, 30], [0, 0, 0, 0]])
BATCH = Batch(torch.zeros(4).long(), HISTORY, torch.tensor([4, 30, 1, 9]), torch.tensor([1.0, 0.0, 1.0, 1.0]))
NEXT = {(0, 3): 4, (1, 0): 2, (1, 1): 3, (1, 2): 4, (2, 1): 7, (2, 2): 30, (2, 3): 1}  # row and place -> what follows


def model(kind: EncoderKind = EncoderKind.SASREC, items: int = ITEMS) -> Any:
    torch.manual_seed(1)
    encoder: Any = build_encoder(
        EncoderConfig(kind=kind, width=8, dropout=0.0), ModelShape(users=1, items=items, max_len=4)
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        encoder.item.weight[0].zero_()
    return SASRecLLM(encoder.eval(), None, None)


def gradients(made: Any, loss: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in made.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [ITEMS - 1, 10 * ITEMS])
def test_with_all_items_it_is_the_softmax(negatives: int, kind: EncoderKind) -> None:
    made = model(kind)
    whole, sampled = softmax(made, BATCH), sampled_softmax(made, BATCH, negatives=negatives)
    torch.testing.assert_close(sampled, whole, atol=1e-5, rtol=1e-5)
    expected, found = gradients(made, whole), gradients(made, sampled)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def slow_logits(made: Any, negatives: int) -> list[tuple[float, list[float]]]:
    """Of each position, its own item's and those of its negatives: what was drawn, but itself, else but the last."""
    drawn = (torch.randperm(ITEMS)[: negatives + 1] + 1).tolist()
    states, table, found = made.encoder.encode(HISTORY), made.encoder.item.weight, []
    for (row, place), item in NEXT.items():
        others = [other for other in drawn if other != item][:negatives]
        assert len(others) == negatives
        logits = [float(states[row, place] @ table[each]) for each in (item, *others)]
        found.append((logits[0], logits[1:]))
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [1, 7, 28])
def test_they_equal_the_formulas(negatives: int, kind: EncoderKind) -> None:
    made, softmaxes, binaries = model(kind), [], []
    torch.manual_seed(5)
    t, alpha = 0.75, negatives / (ITEMS - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    for own, others in slow_logits(made, negatives):
        rest = sum(math.exp(other - math.log(alpha)) for other in others)
        softmaxes.append(-math.log(math.exp(own) / (math.exp(own) + rest)))
        likelihood = math.log((1 / (1 + math.exp(-own))) ** beta)
        likelihood += sum(math.log(1 - 1 / (1 + math.exp(-other))) for other in others)
        binaries.append(-likelihood / (negatives + 1))
    torch.manual_seed(5)
    assert float(sampled_softmax(made, BATCH, negatives=negatives)) == pytest.approx(sum(softmaxes) / 7, rel=1e-5)
    torch.manual_seed(5)
    found = gbce(made, BATCH, negatives=negatives, calibration=t)
    assert float(found) == pytest.approx(sum(binaries) / 7, rel=1e-5)


@torch.no_grad()
def test_over_all_that_could_be_drawn_the_sum_is_that_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two negatives of five items: each pair of others comes equally often, and e^(s - log q) is right on average."""
    encoder, target = model(items=5).encoder, torch.tensor([2, 5])
    states = torch.randn(2, 8)
    whole, pairs, sums = states @ encoder.item.weight[1:].T, Counter[tuple[int, ...]](), []
    for order in itertools.permutations(range(5)):
        monkeypatch.setattr(torch, "randperm", lambda count, device, order=order: torch.tensor(order))
        found = sampled_logits(encoder, states, target, 2)
        assert found.share == 2 / 4
        counted = found.others_NC > -torch.inf
        pairs[tuple(sorted(item + 1 for item, is_in in zip(order, counted[0].tolist(), strict=False) if is_in))] += 1
        sums.append((found.others_NC - math.log(found.share)).exp().sum(1))
    assert set(pairs) == set(itertools.combinations([1, 3, 4, 5], 2)) and set(pairs.values()) == {120 // 6}
    others = whole.exp().sum(1) - whole.exp()[[0, 1], target - 1]
    torch.testing.assert_close(torch.stack(sums).mean(0), others, atol=1e-4, rtol=1e-5)


def test_gbce_in_fractions() -> None:
    """One negative of two others, t = 3/4: beta = 1/2 (3/4 (1 - 2) + 2) = 5/8; both probabilities are 3/4 and 1/4."""
    three = math.log(3)
    sampled = Sampled(torch.tensor([three]), torch.tensor([[-three, -torch.inf]]), share=1 / 2)
    by_hand = -(5 / 8 * math.log(3 / 4) + math.log(3 / 4)) / 2
    assert float(gbce_loss(sampled, 3 / 4)) == pytest.approx(by_hand, rel=1e-6)


def test_uncalibrated_it_is_plain_bce() -> None:
    own, others = torch.tensor([1.5, -0.3]), torch.tensor([[0.2, -1.0, 2.0], [0.0, 3.0, -2.0]])
    left_out = torch.full((2, 1), -torch.inf)
    found = gbce_loss(Sampled(own, torch.cat([others, left_out], 1), share=0.01), calibration=0.0)
    labels = torch.tensor([[1.0, 0, 0, 0]] * 2)
    expected = F.binary_cross_entropy_with_logits(torch.cat([own[:, None], others], 1), labels, reduction="none")
    torch.testing.assert_close(found, expected.mean(1))
    whole = gbce_loss(Sampled(own, torch.cat([others, left_out], 1), share=0.01), calibration=1.0)
    torch.testing.assert_close(found - whole, 0.99 * F.softplus(-own) / 4)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, lambda sampled: gbce_loss(sampled, 0.75)])
def test_large_logits_and_what_is_left_out_stay_finite(loss: Any) -> None:
    own = torch.tensor([200.0, -200.0], requires_grad=True)
    others = torch.tensor([[-200.0, -torch.inf], [200.0, -torch.inf]], requires_grad=True)
    found = loss(Sampled(own, others, share=1e-6))
    found.sum().backward()
    assert found.isfinite().all() and found[1] > 100 > found[0]
    assert own.grad is not None and others.grad is not None
    assert own.grad.isfinite().all() and others.grad.isfinite().all() and not others.grad[:, 1].any()


@pytest.mark.parametrize("loss", [sampled_softmax, partial(gbce, calibration=1.0)])
def test_of_nothing_it_is_zero_and_a_seed_decides(loss: Any) -> None:
    made = model()
    nothing = BATCH.without_prompts(torch.tensor([3]))  # a row without history
    assert loss(made, nothing, negatives=4).item() == 0.0
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(loss(made, BATCH, negatives=4).item())
    assert found[0] == found[1] != found[2]
    one = Batch(torch.zeros(1).long(), torch.tensor([[1, 1]]), torch.tensor([1]), torch.tensor([1.0]))
    assert loss(model(items=1), one, negatives=4).isfinite()
