"""The encoders beside SASRec, each against an independent reference: numpy loops, formulas by hand, torch's own GRU."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sequences import padded, shake
from torch import nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.config.training import PretrainEncoderConfig
from rayrec.models.encoder import Encoder, SequenceEncoder
from rayrec.models.factors import MF, NeuMF
from rayrec.models.gru import GRU
from rayrec.models.objectives import Objective, label_bce, next_item
from rayrec.models.sasrec import SASRec
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build_encoder, trainable
from rayrec.stages import ENCODERS, EncoderKind, Loss, Part
from rayrec.training.engine import parameter_groups

USERS, ITEMS, MAX_LEN, WIDTH = 6, 30, 9, 16
ROWS = [[3], [1, 2, 3, 4, 5], [], [7, 7, 30], list(range(10, 19)), [5, 4, 3, 2, 1, 30, 29, 28]]
BY_NAME = [EncoderKind.MF, EncoderKind.NEUMF]

Array = NDArray[np.float64]


def encoder(kind: EncoderKind, *, dropout: float = 0.0, items: int = ITEMS) -> Any:
    torch.manual_seed(1)
    config = EncoderConfig(kind=kind, width=WIDTH, **({} if kind is EncoderKind.MF else {"dropout": dropout}))
    model = build_encoder(config, ModelShape(users=USERS, items=items, max_len=MAX_LEN))
    shake(model)
    return model.eval()


def batch(users: list[int], items: list[int], labels: list[float], history: list[list[int]] | None = None) -> Batch:
    history = [[1]] * len(users) if history is None else history
    return Batch(torch.tensor(users), padded(history), torch.tensor(items), torch.tensor(labels))


SOME = batch([2, 5, 0, 2, 6, 1], [4, 30, 1, 1, 9, 17], [1.0, 0.0, 1.0, 0.0, 1.0, 1.0], ROWS)


def numbers(model: nn.Module) -> dict[str, Array]:
    """Weights by name, as a copy."""
    return {name: parameter.detach().double().numpy().copy() for name, parameter in model.named_parameters()}


# Matrix factorisation


def mf_logit(held: dict[str, Array], user: int, item: int) -> float:
    products = [held["user.weight"][user][d] * held["item.weight"][item][d] for d in range(WIDTH)]
    return float(
        sum(products) + held["user_bias.weight"][user][0] + held["item_bias.weight"][item][0] + held["bias"][0]
    )


@torch.no_grad()
def test_mf_equals_a_plain_loop() -> None:
    model: MF = encoder(EncoderKind.MF)
    pairs = zip(SOME.user_B.tolist(), SOME.item_B.tolist(), strict=True)
    expected = [mf_logit(numbers(model), *pair) for pair in pairs]
    np.testing.assert_allclose(model.score(SOME).numpy(), expected, atol=1e-5)
    assert np.std(expected) > 0.2


def test_mf_learns_as_a_plain_loop_does() -> None:
    """Three steps of gradient descent, the gradients by hand: those of a logit times what it is multiplied with."""
    model: MF = encoder(EncoderKind.MF).double()
    held, rate = numbers(model), 0.7
    users, items, labels = SOME.user_B.tolist(), SOME.item_B.tolist(), SOME.label_B.tolist()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(3):
        loss = nn.functional.binary_cross_entropy_with_logits(model.score(SOME), SOME.label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = {name: value.copy() for name, value in held.items()}
        for user, item, label in zip(users, items, labels, strict=True):
            error = (1 / (1 + np.exp(-mf_logit(before, user, item))) - label) / len(users)
            held["bias"] -= rate * error
            held["item_bias.weight"][item] -= rate * error
            held["item.weight"][item] -= rate * error * before["user.weight"][user]
            if user:  # the unknown user learns nothing
                held["user_bias.weight"][user] -= rate * error
                held["user.weight"][user] -= rate * error * before["item.weight"][item]
    for name, value in numbers(model).items():
        np.testing.assert_allclose(value, held[name], atol=1e-6, err_msg=name)  # a score is fp32


# NeuMF


@torch.no_grad()
def test_neumf_equals_its_formulas() -> None:
    model: NeuMF = encoder(EncoderKind.NEUMF)
    held, half = numbers(model), WIDTH // 2
    found = model.score(SOME)
    for user, item, logit in zip(SOME.user_B.tolist(), SOME.item_B.tolist(), found.tolist(), strict=True):
        p, q = held["user.weight"][user], held["item.weight"][item]
        hidden = [*p[half:], *q[half:]]
        for layer, wide in enumerate((8, 4, 2)):
            weight, bias = held[f"tower.{layer}.weight"], held[f"tower.{layer}.bias"]
            assert weight.shape == (wide, len(hidden))
            hidden = [
                max(0.0, sum(w * z for w, z in zip(weight[i], hidden, strict=True)) + bias[i]) for i in range(wide)
            ]
        fused = [p[d] * q[d] for d in range(half)] + hidden
        expected = sum(h * z for h, z in zip(held["out.weight"][0], fused, strict=True)) + held["out.bias"][0]
        assert logit == pytest.approx(expected, abs=1e-5)
    assert found.std() > 0.05


@torch.no_grad()
def test_neumf_in_fractions() -> None:
    """All weights one half, all biases one quarter, p = 1, q = 2: every number can be counted."""
    config = EncoderConfig(kind=EncoderKind.NEUMF, width=8)
    model = NeuMF(config, users=1, items=1, max_len=1).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(0.25 if name.endswith("bias") else 0.5)
    model.user.weight[1], model.item.weight[1] = 1.0, 2.0
    first = 4 * 1 / 2 + 4 * 2 / 2 + 1 / 4  # four of p and four of q
    second = 4 * first / 2 + 1 / 4
    third = 2 * second / 2 + 1 / 4
    assert float(model.score(batch([1], [1], [1.0]))) == (4 * (1 * 2) + third) / 2 + 1 / 4


def test_neumfs_dropout_is_on_in_training_only() -> None:
    model = encoder(EncoderKind.NEUMF, dropout=0.5)
    assert torch.equal(model.score(SOME), model.score(SOME))
    model.train()
    assert not torch.equal(model.score(SOME), model.score(SOME))


# Users whom the tables do not know


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_user_unseen_in_training_is_the_unknown_user(kind: EncoderKind) -> None:
    """Users 3 and 4 never come: after training with decay they are zero, as row 0 is, and score alike, bit for bit."""
    torch.manual_seed(0)
    config = EncoderConfig(kind=kind)
    model = SASRecLLM(build_encoder(config, ModelShape(users=USERS, items=ITEMS, max_len=MAX_LEN)), None, None)
    stage = PretrainEncoderConfig(lr=0.05, weight_decay=0.1)
    groups = parameter_groups(model, trainable(model, (Part.ENCODER,)), stage)
    optimizer = torch.optim.AdamW([group | {"lr": 0.05} for group in groups])
    for step in range(20):
        torch.manual_seed(step)
        loss = label_bce(model, SOME)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.set_mode(())
    made: Any = model.encoder
    assert not made.user.weight[[0, 3, 4]].any() and made.user.weight[[1, 2, 5, 6]].any(1).all()
    with torch.no_grad():
        nobody, third, known = (made.score(batch([user] * 3, [4, 9, 21], [0.0] * 3)) for user in (0, 3, 2))
        assert torch.equal(nobody, third) and not torch.equal(nobody, known)
        assert nobody.unique().numel() == 3  # they still tell items apart
        if kind is EncoderKind.MF:
            assert torch.equal(nobody, (made.item_bias.weight[[4, 9, 21], 0] + made.bias))


@pytest.mark.parametrize("kind", BY_NAME)
def test_the_mapper_gets_the_tables_rows(kind: EncoderKind) -> None:
    model = encoder(kind)
    assert torch.equal(model.user_vectors(SOME), model.user.weight[SOME.user_B])
    assert torch.equal(model.item_vectors(SOME.item_B), model.item.weight[SOME.item_B])
    assert model.user_vectors(SOME).shape == (6, WIDTH)


# GRU


def steps_by_hand(model: GRU, items: list[int]) -> Array:
    """Hidden states of one history, the cell's formulas written out; rows of W and U are those of r, z, n."""
    held = numbers(model.cell)
    state, states = np.zeros(WIDTH), []
    for item in items:
        inner = held["weight_ih_l0"] @ numbers(model.item)["weight"][item] + held["bias_ih_l0"]
        outer = held["weight_hh_l0"] @ state + held["bias_hh_l0"]
        (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(inner, 3), np.split(outer, 3)
        reset, update = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
        state = (1 - update) * np.tanh(x_n + reset * h_n) + update * state
        states.append(state)
    return np.array(states)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("width", [0, MAX_LEN + 3])
def test_a_padded_row_equals_torchs_gru_of_the_row_alone(width: int, dtype: torch.dtype, close: float) -> None:
    model: GRU = encoder(EncoderKind.GRU).to(dtype)
    found = model.encode(padded(ROWS, width))
    newest = model.encode(padded(ROWS, width), newest_only=True)
    assert newest.shape == (len(ROWS), 1, WIDTH)
    for row, states, last in zip(ROWS, found, newest, strict=True):
        expected = model.cell(model.item.weight[row or [0]][None])[0][0]
        torch.testing.assert_close(states[-len(row or [0]) :], expected, atol=close, rtol=0)
        torch.testing.assert_close(last[0], expected[-1], atol=close, rtol=0)
        assert expected.std() > 0.1


@torch.no_grad()
def test_the_cell_is_the_papers() -> None:
    model: GRU = encoder(EncoderKind.GRU).double()
    for row, states in zip(ROWS, model.encode(padded(ROWS)), strict=True):
        np.testing.assert_allclose(states[-len(row or [0]) :].numpy(), steps_by_hand(model, row or [0]), atol=1e-12)


def test_the_newest_state_alone_has_the_same_gradients() -> None:
    model, found = encoder(EncoderKind.GRU).double(), []
    for states in (model.encode(padded(ROWS))[:, -1:], model.encode(padded(ROWS), newest_only=True)):
        model.zero_grad()
        states.square().sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-12, rtol=1e-9, msg=name)
    assert not found[0]["item.weight"][0].any() and found[0]["item.weight"][1:].any()


@torch.no_grad()
def test_grus_next_item_equals_the_slow_loop() -> None:
    """In a catalogue of two the other item is no matter of chance."""
    model: GRU = encoder(EncoderKind.GRU, items=2).double()
    rows, items, labels = [[1, 2, 2], [2], [], [1, 1]], [1, 2, 1, 2], [1.0, 1.0, 1.0, 0.0]
    losses, table = [], model.item.weight.numpy()
    for row, item, label in zip(rows, items, labels, strict=True):
        following = [*row[1:], *([item] if label else [])]
        for state, target in zip(steps_by_hand(model, row)[: len(following)], following, strict=False):
            losses.append(np.log1p(np.exp(-state @ table[target])) + np.log1p(np.exp(state @ table[3 - target])))
    found = next_item(SASRecLLM(model, None, None), batch([0] * 4, items, labels, rows))
    assert len(losses) == 3 + 1 + 0 + 1
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)  # the mask is fp32


# All kinds


@pytest.mark.parametrize("kind", EncoderKind)
def test_every_kind_learns_by_every_loss_it_offers(kind: EncoderKind) -> None:
    others = set(ENCODERS[kind].losses) - {Loss.LABEL_BCE}
    assert bool(others) == isinstance(encoder(kind), SequenceEncoder)
    for loss in ENCODERS[kind].losses:
        objective = Objective(SASRecLLM(encoder(kind), None, None), loss, PretrainEncoderConfig(loss=loss).of_loss)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.2)
        values = []
        for _ in range(30):
            torch.manual_seed(0)
            value = objective(SOME)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.9 * values[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", EncoderKind)
def test_neighbours_in_a_batch_change_nothing(kind: EncoderKind) -> None:
    model: Encoder = encoder(kind)
    together = model.score(SOME)
    for i, row in enumerate(ROWS):
        alone = batch([int(SOME.user_B[i])], [int(SOME.item_B[i])], [0.0], [row])
        torch.testing.assert_close(model.score(alone)[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", EncoderKind)
def test_no_decay_on_biases_and_norms(kind: EncoderKind) -> None:
    """Those of single users and items are tables that shrink to zero, as their vectors are."""
    model = SASRecLLM(encoder(kind), None, None)
    parameters = trainable(model, (Part.ENCODER,))
    groups = parameter_groups(model, parameters, PretrainEncoderConfig(weight_decay=0.5))
    bare = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    found = {name.removeprefix("encoder.") for name, parameter in parameters.items() if id(parameter) in bare}
    expected = {
        EncoderKind.MF: {"bias"},
        EncoderKind.NEUMF: {"tower.0.bias", "tower.1.bias", "tower.2.bias", "out.bias"},
        EncoderKind.GRU: {"cell.bias_ih_l0", "cell.bias_hh_l0"},
    }
    names = {name.removeprefix("encoder.") for name in parameters}
    assert found == expected.get(kind, {name for name in names if "norm" in name or name.endswith("bias")})


def test_sasrec_is_drawn_as_before_there_were_others() -> None:
    """Names, shapes, values and what the next draw is, from the code that knew no other encoder: saved parts load."""
    torch.manual_seed(0)
    model = build_encoder(EncoderConfig(), ModelShape(users=9, items=100, max_len=20))
    assert type(model) is SASRec and int(torch.randint(2**31, ())) == 2093636671
    block = ["attention_norm", "qkv", "out", "feed_norm", "feed_in", "feed_out"]
    inner = [f"blocks.{i}.{name}.{kind}" for i in (0, 1) for name in block for kind in ("weight", "bias")]
    assert list(model.state_dict()) == ["item.weight", "position.weight", *inner, "norm.weight", "norm.bias"]
    assert sum(p.numel() for p in model.parameters()) == 58304
    assert model.item.weight[1, :3].tolist() == pytest.approx([-0.0296516, 0.0107573, 0.0125760], abs=1e-6)
    last = model.blocks[1].feed_out.weight[5, :3].tolist()
    assert last == pytest.approx([0.0664620, 0.0280278, 0.0392713], abs=1e-6)
