"""The encoder against torch's own transformer, its padding and causality, and the objectives against slow loops."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from sequences import padded, shake
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.config.training import PretrainEncoderConfig
from rayrec.models.objectives import Objective, label_bce, next_item, softmax
from rayrec.models.sasrec import SASRec
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import ENCODERS, EncoderKind

ITEMS, MAX_LEN = 30, 9
ROWS = [[3], [1, 2, 3, 4, 5], [7, 7, 30], list(range(10, 19)), [5, 4, 3, 2, 1, 30, 29, 28]]


def encoder(*, dropout: float = 0.0, items: int = ITEMS) -> SASRec:
    torch.manual_seed(1)
    model = SASRec(EncoderConfig(width=16, heads=4, blocks=2, dropout=dropout), items=items, max_len=MAX_LEN)
    shake(model)
    return model.eval()


def batch(history: list[list[int]], items: list[int], labels: list[float]) -> Batch:
    nobody = torch.zeros(len(items), dtype=torch.int64)
    return Batch(nobody, padded(history), torch.tensor(items), torch.tensor(labels))


def user_vectors(model: SASRec, rows: list[list[int]], width: int = 0) -> Tensor:
    nobody = torch.zeros(len(rows), dtype=torch.int64)
    return model.user_vectors(Batch(nobody, padded(rows, width), nobody, nobody))


# torch's own transformer


def torchs(model: SASRec) -> nn.ModuleList:
    layers = nn.ModuleList()
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            16, 4, dim_feedforward=16, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        pairs = {
            layer.self_attn.out_proj: block.out,
            layer.linear1: block.feed_in,
            layer.linear2: block.feed_out,
            layer.norm1: block.attention_norm,
            layer.norm2: block.feed_norm,
        }
        for theirs, ours in pairs.items():
            theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(block.qkv.weight)
            layer.self_attn.in_proj_bias.copy_(block.qkv.bias)
        layers.append(layer.eval())
    return layers


def reference(model: SASRec, row: list[int]) -> Tensor:
    """Hidden states of one row, alone and without padding, shape (len(row), width)."""
    states = model.item.weight[row] + model.position.weight[MAX_LEN - len(row) :]
    states = states.unsqueeze(0)
    mask = nn.Transformer.generate_square_subsequent_mask(len(row))
    for layer in torchs(model):
        states = layer(states, src_mask=mask)
    return torch.layer_norm(states[0], (16,), model.norm.weight, model.norm.bias)


@torch.no_grad()
def test_equals_torchs_transformer() -> None:
    model = encoder()
    states = model.encode(padded(ROWS))
    for row, found in zip(ROWS, states, strict=True):
        expected = reference(model, row)
        assert expected.std() > 0.5
        torch.testing.assert_close(found[-len(row) :], expected, atol=1e-5, rtol=0)


def test_the_newest_position_alone_is_the_same_in_values_and_gradients() -> None:
    model, history = encoder(), padded(ROWS)
    found = []
    for states in (model.encode(history)[:, -1:], model.encode(history, newest_only=True)):
        model.zero_grad()
        states.square().sum().backward()
        found.append({"states": states.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()})
    whole, newest = found
    assert newest["states"].shape == (len(ROWS), 1, 16)
    for name, value in whole.items():
        torch.testing.assert_close(newest[name], value, rtol=1e-5, atol=1e-5, msg=name)


@torch.no_grad()
def test_the_score_is_the_dot_product_of_user_and_item() -> None:
    model, items = encoder(), [4, 30, 1, 1, 9]
    expected = [reference(model, row)[-1] @ model.item.weight[item] for row, item in zip(ROWS, items, strict=True)]
    found = model.score(batch(ROWS, items, [0.0] * len(ROWS)))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


# Causality and padding


@torch.no_grad()
@pytest.mark.parametrize("place", range(1, MAX_LEN))
def test_what_comes_later_is_not_seen(place: int) -> None:
    model, row = encoder(), list(range(1, MAX_LEN + 1))
    changed = [*row[:place], 25, *row[place + 1 :]]
    before, after = model.encode(padded([row, changed]))
    assert torch.equal(before[:place], after[:place])
    assert not torch.allclose(before[place:], after[place:], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("width", [5, 7, MAX_LEN])
def test_wider_padding_changes_nothing(width: int) -> None:
    model, rows = encoder().double(), [[3], [1, 2, 3, 4, 5], [], [7, 8]]
    narrow, wide = user_vectors(model, rows), user_vectors(model, rows, width)
    torch.testing.assert_close(narrow, wide, atol=1e-12, rtol=0)


@torch.no_grad()
def test_neighbours_in_a_batch_change_nothing() -> None:
    model = encoder().double()  # in fp32 the order of sums differs by machine
    together = user_vectors(model, ROWS)
    alone = torch.cat([user_vectors(model, [row]) for row in ROWS])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def test_an_empty_history_is_finite_and_so_is_its_gradient() -> None:
    model = encoder().train()
    vectors = user_vectors(model, [[], [1, 2]], 4)
    vectors.square().sum().backward()
    assert vectors.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_padding_is_never_trained() -> None:
    model = encoder()
    model.score(batch([[1], [1, 2, 3]], [0, 4], [0.0, 0.0])).sum().backward()
    assert not model.item.weight.grad[0].any()
    assert model.item.weight.grad[1].any()


def test_dropout_is_on_in_training_only() -> None:
    model, history = encoder(dropout=0.5), padded(ROWS)
    assert torch.equal(model.encode(history), model.encode(history))
    model.train()
    assert not torch.equal(model.encode(history), model.encode(history))


def slow_training(model: SASRec, history_BL: Tensor) -> Tensor:
    """States of training, every score masked and dropped by layers of their own; draws in the order of the layers."""
    length, known_BL1 = history_BL.shape[1], (history_BL > 0).unsqueeze(2)
    states = model.dropout(model.item(history_BL) + model.position.weight[MAX_LEN - length :]) * known_BL1
    seen_LL, itself_LL = torch.ones(length, length).tril().bool(), torch.eye(length).bool()
    hidden_B1LL = ~(seen_LL & known_BL1.transpose(1, 2) | itself_LL).unsqueeze(1)
    for block in model.blocks:
        by_head = block.qkv(block.attention_norm(states)).view(len(states), length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        score_BHLL = (by_head[0] @ by_head[1].transpose(2, 3) / 2).masked_fill(hidden_B1LL, -torch.inf)
        mixed = (block.dropout(score_BHLL.softmax(-1)) @ by_head[2]).transpose(1, 2).flatten(2)
        states = states + block.dropout(block.out(mixed))
        inner = block.dropout(block.feed_in(block.feed_norm(states)).relu())
        states = states + block.dropout(block.feed_out(inner))
    return model.norm(states)


def slow_pairs(model: SASRec, rows: Batch) -> Tensor:
    """The loss of ``next_item`` in training, of one look-up after the other."""
    next_BL = torch.cat([rows.history_BL[:, 1:], (rows.item_B * rows.label_B.long())[:, None]], 1)
    next_BL = next_BL * (rows.history_BL > 0)
    states = slow_training(model, rows.history_BL)
    other_BL = (next_BL - 1 + torch.randint(1, ITEMS, next_BL.shape)) % ITEMS + 1
    positive, negative = ((states * model.item(ids)).sum(-1) for ids in (next_BL, other_BL))
    loss_BL = nn.functional.softplus(-positive) + nn.functional.softplus(negative)
    return loss_BL[next_BL > 0].mean()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_training_equals_layer_after_layer(rate: float) -> None:
    model = encoder(dropout=rate).train()
    rows = batch(ROWS, [4, 30, 1, 1, 9], [1.0, 0.0, 1.0, 0.0, 1.0])
    found = []
    for loss in (lambda: slow_pairs(model, rows), lambda: next_item(SASRecLLM(model, None, None), rows)):
        torch.manual_seed(5)
        model.zero_grad()
        value = loss()
        value.backward()
        found.append({"loss": value.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()})
    slow, fast = found
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-5, atol=1e-5, msg=name)


# Objectives


def slow_next_item(
    model: SASRec, rows: list[list[int]], items: list[int], labels: list[float], shifts: Tensor
) -> float:
    width, losses = shifts.shape[1], []
    for i, (row, item, label) in enumerate(zip(rows, items, labels, strict=True)):
        known = row + ([item] if label else [])
        for place in range(min(len(row), len(known) - 1)):
            state = reference(model, row)[place]
            following = known[place + 1]
            shift = int(shifts[i, width - len(row) + place])
            other = (following - 1 + shift) % ITEMS + 1
            assert other != following and 1 <= other <= ITEMS
            losses.append(math.log1p(math.exp(-float(state @ model.item.weight[following]))))
            losses.append(math.log1p(math.exp(float(state @ model.item.weight[other]))))
    return sum(losses) / (len(losses) / 2)


@torch.no_grad()
def test_next_item_equals_the_slow_loop() -> None:
    model, items, labels = encoder(), [4, 30, 1, 1, 9], [1.0, 0.0, 1.0, 0.0, 1.0]
    torch.manual_seed(7)
    shifts = torch.randint(1, ITEMS, (len(ROWS), MAX_LEN))
    torch.manual_seed(7)
    found = next_item(SASRecLLM(model, None, None), batch(ROWS, items, labels))
    assert float(found) == pytest.approx(slow_next_item(model, ROWS, items, labels, shifts), rel=1e-5)


@torch.no_grad()
def test_softmax_equals_the_slow_loop() -> None:
    model, items, labels = encoder(), [4, 30, 1, 1, 9], [1.0, 0.0, 1.0, 0.0, 1.0]
    losses = []
    for row, item, label in zip(ROWS, items, labels, strict=True):
        known = row + ([item] if label else [])
        for place in range(min(len(row), len(known) - 1)):
            logits = [float(reference(model, row)[place] @ model.item.weight[i]) for i in range(1, ITEMS + 1)]
            losses.append(math.log(sum(map(math.exp, logits))) - logits[known[place + 1] - 1])
    found = softmax(SASRecLLM(model, None, None), batch(ROWS, items, labels))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("loss", [next_item, softmax])
def test_next_item_of_nothing_is_zero(loss: Callable[[SASRecLLM, Batch], Tensor]) -> None:
    rows = batch([[], [3]], [5, 5], [1.0, 0.0])  # no history; a history of one and no liked target
    assert float(loss(SASRecLLM(encoder(), None, None), rows)) == 0.0


@torch.no_grad()
def test_a_catalogue_of_one_item_has_no_other() -> None:
    assert next_item(SASRecLLM(encoder(items=1), None, None), batch([[1, 1]], [1], [1.0])).isfinite()


@pytest.mark.parametrize(
    ("logits", "labels", "loss"),
    [
        ([0.0], [1.0], math.log(2)),
        ([math.log(3)], [1.0], math.log(4 / 3)),  # p = 3/4
        ([math.log(3)], [0.0], math.log(4)),
        ([math.log(3), 0.0, -math.log(3)], [1.0, 0.0, 1.0], (math.log(4 / 3) + math.log(2) + math.log(4)) / 3),
        ([100.0, -100.0], [0.0, 0.0], 50.0),  # no overflow
    ],
)
def test_label_bce_by_hand(logits: list[float], labels: list[float], loss: float) -> None:
    rows = SimpleNamespace(label_B=torch.tensor(labels), prompt="asked in words")
    assert float(label_bce(lambda _: torch.tensor(logits), rows)) == pytest.approx(loss, rel=1e-6)


def test_the_objective_trains_the_encoder() -> None:
    rows = batch([[1, 2, 3], [4, 5, 6]], [7, 8], [1.0, 0.0])
    for loss in ENCODERS[EncoderKind.SASREC].losses:
        model = SASRecLLM(encoder(), None, None)
        objective = Objective(model, loss, PretrainEncoderConfig(loss=loss).of_loss)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
        values = []
        for _ in range(10):
            torch.manual_seed(0)
            value = objective(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.9 * values[0]
