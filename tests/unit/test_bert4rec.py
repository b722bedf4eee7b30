"""BERT4Rec against torch's own transformer, what it hides, and the cloze against a slow loop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from sequences import padded, shake
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.config.model import EncoderConfig
from rayrec.models.bert4rec import BERT4Rec
from rayrec.models.objectives import Objective, cloze
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import EncoderKind, Loss

ITEMS, MAX_LEN, WIDTH = 30, 9, 16
MASK = ITEMS + 1
ROWS = [[3], [1, 2, 3, 4, 5], [], [7, 7, 30], list(range(10, 19)), [5, 4, 3, 2, 1, 30, 29, 28]]
TARGETS, LABELS = [4, 30, 9, 1, 2, 9], [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def encoder(*, items: int = ITEMS, mask: float = 0.4) -> BERT4Rec:
    torch.manual_seed(1)
    config = EncoderConfig(kind=EncoderKind.BERT4REC, width=WIDTH, dropout=0.0, mask=mask)
    model = BERT4Rec(config, items=items, max_len=MAX_LEN)
    shake(model)
    return model.eval()


def batch(rows: list[list[int]], items: list[int], labels: list[float], width: int = 0) -> Batch:
    return Batch(torch.zeros(len(rows)).long(), padded(rows, width), torch.tensor(items), torch.tensor(labels))


def user_vectors(model: BERT4Rec, rows: list[list[int]], width: int = 0) -> Tensor:
    return model.user_vectors(batch(rows, [1] * len(rows), [0.0] * len(rows), width))


def reference(model: BERT4Rec, sequence: list[int]) -> Tensor:
    """Hidden states of one sequence by torch's own layers, alone, without padding or mask; (len(sequence), width)."""
    states = (model.item.weight[sequence] + model.position.weight[MAX_LEN + 1 - len(sequence) :])[None]
    blocks: Any = model.blocks
    for block in blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, dim_feedforward=WIDTH, dropout=0.0, activation="relu", batch_first=True, norm_first=True
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
        layer.self_attn.in_proj_weight.copy_(block.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(block.qkv.bias)
        states = layer.eval()(states)
    return torch.layer_norm(states[0], (WIDTH,), model.norm.weight, model.norm.bias)


# The encoder


@torch.no_grad()
def test_the_user_vector_is_the_state_of_a_mask_behind_the_history() -> None:
    model = encoder()
    found = user_vectors(model, ROWS)
    assert found.shape == (len(ROWS), WIDTH) and found.std() > 0.5
    for row, vector in zip(ROWS, found, strict=True):
        torch.testing.assert_close(vector, reference(model, [*row, MASK])[-1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_state_equals_torchs() -> None:
    model, sequences = encoder(), [[MASK, 4, MASK], [1, 2, 3, 4, 5, 6, 7, 8, 9, MASK], [8]]
    for sequence, states in zip(sequences, model.encode(padded(sequences)), strict=True):
        torch.testing.assert_close(states[-len(sequence) :], reference(model, sequence), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("place", range(MAX_LEN))
def test_every_place_is_seen_from_every_other(place: int) -> None:
    model, row = encoder(), list(range(1, MAX_LEN + 1))
    changed = [*row[:place], 25, *row[place + 1 :]]
    before, after = model.encode(padded([row, changed]))
    assert (before != after).any(1).all()


@torch.no_grad()
@pytest.mark.parametrize("width", [5, 7, MAX_LEN])
def test_padding_and_neighbours_change_nothing(width: int) -> None:
    model, rows = encoder().double(), [[3], [1, 2, 3, 4, 5], [], [7, 8]]
    alone = torch.cat([user_vectors(model, [row]) for row in rows])
    torch.testing.assert_close(user_vectors(model, rows, width), alone, atol=1e-12, rtol=0)


def test_a_mask_learns_and_padding_does_not() -> None:
    model = encoder()
    model.score(batch([[], [1, 2]], [3, 4], [0.0, 0.0])).sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.item.weight.grad
    assert gradient is not None and gradient.isfinite().all()
    assert gradient.any(1).nonzero()[:, 0].tolist() == [1, 2, 3, 4, MASK]


def test_its_weights_go_into_a_file_and_back() -> None:
    model, other = encoder(), encoder()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(9.0)
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(user_vectors(other, ROWS), user_vectors(model, ROWS))
    assert model.item.weight.shape == (ITEMS + 2, WIDTH) and model.position.weight.shape == (MAX_LEN + 1, WIDTH)


# What is hidden


def test_hidden_items_come_as_often_as_they_should() -> None:
    """Of 5 items, each with the probability .4 in ten rows of eleven; else the last alone, as where none is drawn."""
    torch.manual_seed(0)
    rows, known = 200_000, padded([[0, 0, 1, 1, 1, 1, 1]]) > 0
    found = encoder().hidden(known.expand(rows, -1))
    share, random = found.double().mean(0), 10 / 11
    assert not found[:, :2].any() and found.any(1).all()
    assert share[2:6].tolist() == pytest.approx([random * 0.4] * 4, abs=0.005)
    assert float(share[6]) == pytest.approx(random * (0.4 + 0.6**5) + 1 - random, abs=0.005)
    last_alone = (found.sum(1) == 1) & found[:, 6]
    assert float(last_alone.double().mean()) == pytest.approx(random * (0.6**4 * 0.4 + 0.6**5) + 1 - random, abs=0.005)


def test_what_is_empty_hides_nothing_and_a_seed_decides() -> None:
    model, known = encoder(mask=0.9), padded([[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]) > 0
    drawn = []
    for seed in (0, 0, *range(1, 20)):
        torch.manual_seed(seed)
        drawn.append(model.hidden(known))
        assert not (drawn[-1] & ~known).any() and drawn[-1][1:].any(1).all() and drawn[-1][1, 3]
    assert torch.equal(drawn[0], drawn[1]) and any(not torch.equal(drawn[0], other) for other in drawn)


# The cloze


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_the_cloze_equals_the_slow_loop(seed: int) -> None:
    """A liked target is the sequence's newest item; a disliked one is not there, and the history ends the sequence."""
    model, length, losses = encoder(), MAX_LEN + 1, []
    sequences = [[*row, item] if label else row for row, item, label in zip(ROWS, TARGETS, LABELS, strict=True)]
    torch.manual_seed(seed)
    hidden = model.hidden(padded(sequences, length) > 0)
    for sequence, places in zip(sequences, hidden.tolist(), strict=True):
        is_hidden = places[length - len(sequence) :]
        shown = [MASK if hides else item for item, hides in zip(sequence, is_hidden, strict=True)]
        for place in (place for place, hides in enumerate(is_hidden) if hides):
            logits = [reference(model, shown)[place] @ model.item.weight[item] for item in range(1, ITEMS + 1)]
            losses.append(torch.stack(logits).logsumexp(0) - logits[sequence[place] - 1])
    assert len(losses) >= len(ROWS)
    torch.manual_seed(seed)
    found = cloze(SASRecLLM(model, None, None), batch(ROWS, TARGETS, LABELS, MAX_LEN))
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_a_cloze_of_nothing_is_zero() -> None:
    found = cloze(SASRecLLM(encoder(), None, None), batch([[], []], [5, 6], [0.0, 0.0]))
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0.0


def walks(rows: int, length: int) -> Tensor:
    """Sessions of a Markov chain: in four of five steps from item i to i + 1, else to an item below 6, often 1."""
    draw = torch.Generator().manual_seed(7)
    items, favourites = 12, torch.tensor([6.0, 1, 1, 1, 1])
    walk = [torch.randint(1, items + 1, (rows,), generator=draw)]
    for _ in range(length - 1):
        jump = torch.multinomial(favourites, rows, replacement=True, generator=draw) + 1
        is_step = torch.rand(rows, generator=draw) < 0.8
        walk.append(torch.where(is_step, walk[-1] % items + 1, jump))
    return torch.stack(walk, dim=1)


def batches(sessions: Tensor, steps: int) -> Iterator[Batch]:
    for step in range(steps):
        some = sessions[torch.arange(64) + 64 * step % len(sessions)]
        yield Batch(some[:, 0], some[:, :-1], some[:, -1], torch.ones(len(some)))


def test_it_learns_who_follows_whom() -> None:
    """Sessions that training did not see: most last items are told, of which popularity tells few."""
    sessions = walks(768, 8)
    train, held_out = sessions[:512], sessions[512:]
    torch.manual_seed(0)
    config = EncoderConfig(kind=EncoderKind.BERT4REC, width=WIDTH, blocks=1, heads=2, dropout=0.0)
    model = BERT4Rec(config, items=12, max_len=7)
    objective = Objective(SASRecLLM(model, None, None), Loss.CLOZE)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step, some in enumerate(batches(train, 240)):
        torch.manual_seed(step)
        optimizer.zero_grad()
        objective(some).backward()
        optimizer.step()
    with torch.no_grad():
        users = model.eval().user_vectors(Batch(held_out[:, 0], held_out[:, :-1], held_out[:, -1], torch.ones(256)))
        told = ((users @ model.item_vectors(torch.arange(1, 13)).T).argmax(1) + 1 == held_out[:, -1]).double().mean()
    popular = (held_out[:, -1] == train.flatten().bincount().argmax()).double().mean()
    assert told > 0.65 and popular < 0.4
