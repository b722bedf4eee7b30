"""Histories of all rated items: from prepared rows to what encoders make of them, against slow and obvious loops."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sequences import padded, shake
from torch import Tensor, nn

from rayrec.batch import Batch, SplitPrompt
from rayrec.config import Config
from rayrec.config.model import EncoderConfig
from rayrec.config.training import PretrainEncoderConfig
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.collate import Cut, collate
from rayrec.data.rated import rated_histories, write_rated
from rayrec.data.rows import HISTORY, OpenRows, RowSource
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.objectives import Objective, next_item, softmax
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build_encoder
from rayrec.preparation import prepare_beside
from rayrec.stages import ENCODERS, EncoderKind, History, Loss, Stream
from rayrec.store import Prepared

USERS, ITEMS, MAX_LEN = 6, 20, 9
KINDS = [EncoderKind.SASREC, EncoderKind.GRU]


# ---------------------------------------------------------------------------------------------------------------- rows


def generated(rows: int = 152, users: int = USERS - 1) -> list[dict[str, Any]]:
    """In order of time with many ties, as people rate by the page, none twice; the last user has no rows."""
    draw = np.random.default_rng(3)
    times = np.sort(draw.integers(0, rows // 4, rows)).tolist()
    found = [
        {
            c.USER_ID: int(draw.integers(0, users)),
            c.ITEM_ID: int(draw.integers(1, ITEMS + 1)),
            c.LABEL: int(draw.integers(0, 2)),
            c.TIMESTAMP: time,
        }
        for time in times
    ]
    return [row for at, row in enumerate(found) if row | {c.LABEL: 0} not in [r | {c.LABEL: 0} for r in found[:at]]]


def seen_before(rows: list[dict[str, Any]], at: int) -> list[tuple[int, int]]:
    """Item and label of what the user of a row has rated before it, oldest first; each row once."""
    row, key = rows[at], (c.USER_ID, c.ITEM_ID, c.TIMESTAMP)
    own = next(i for i, other in enumerate(rows) if all(other[k] == row[k] for k in key))  # its first appearance
    before = [
        (other[c.TIMESTAMP], i)
        for i, other in enumerate(rows)
        if other[c.USER_ID] == row[c.USER_ID]
        and (other[c.TIMESTAMP], i) < (row[c.TIMESTAMP], own)
        and not any(all(other[k] == rows[j][k] for k in key) for j in range(i))
    ]
    return [(rows[i][c.ITEM_ID], rows[i][c.LABEL]) for _, i in sorted(before)]


def arrow(rows: list[dict[str, Any]]) -> pa.Table:
    names = [c.USER_ID, c.ITEM_ID, c.LABEL, c.TIMESTAMP]
    return pa.Table.from_pylist(rows, pa.schema([c.ROWS_SCHEMA.field(name) for name in names]))


def reordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A dataset that comes split: user by user, and one set a part of another."""
    by_user = sorted(rows, key=lambda row: int(row[c.USER_ID]))
    return by_user + by_user[40:60]


@pytest.mark.parametrize("order", [list, reordered], ids=["by time", "by user, some twice"])
def test_what_was_rated_before_a_row(order: Callable[[Any], list[dict[str, Any]]]) -> None:
    rows = order(generated())
    histories, seen = rated_histories(arrow(rows), USERS)
    assert len(histories) == USERS and histories.schema == c.RATED_SCHEMA
    users = histories.to_pylist()
    assert users[-1] == {c.RATED: [], c.RATED_LABELS: []}
    for at, row in enumerate(rows):
        of_user = users[row[c.USER_ID]]
        pairs = list(zip(of_user[c.RATED], of_user[c.RATED_LABELS], strict=True))
        assert pairs[: seen[at]] == seen_before(rows, at)
    assert sum(len(user[c.RATED]) for user in users) == len(
        {(row[c.USER_ID], row[c.ITEM_ID], row[c.TIMESTAMP]) for row in rows}
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prepared rows with the histories beside them."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    rows, liked = generated(), defaultdict[int, list[int]](list)
    for row in rows:
        row |= {c.RATING: 0.0, c.SEEN: len(liked[row[c.USER_ID]]), c.IS_WARM: True, c.IS_STRICT_COLD: False}
        liked[row[c.USER_ID]] += [row[c.ITEM_ID]] * row[c.LABEL]
    place = tmp_path / "data"
    place.mkdir()
    for split, part in zip(c.SPLITS, (rows[:100], rows[100:120], rows[120:]), strict=True):
        pq.write_table(pa.Table.from_pylist(part, c.ROWS_SCHEMA), place / f"{split}.parquet")
    users = [{c.USER_ID: user, c.SOURCE_ID: str(user), c.LIKED: liked[user]} for user in range(USERS)]
    pq.write_table(pa.Table.from_pylist(users, c.USERS_SCHEMA), place / "users.parquet")
    (tmp_path / "scratch").mkdir()
    write_rated(str(place), tmp_path / "scratch")
    return str(place)


def opened(folder: str, split: str, stream: Stream = Stream.INTERACTIONS, max_len: int = 5) -> OpenRows:
    return RowSource(folder, split, stream, max_len, frozenset({Beside.RATED})).open()


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("valid", 100), ("test", 120)])
def test_a_fetched_history_is_the_newest_of_them(split: str, first: int, folder: str) -> None:
    """A test row is behind valid and training rows, as it is for liked histories."""
    rows = opened(folder, split)
    ids = np.array([7, 0, 19, 3, 3])
    found = rows.fetch(ids)
    expected = [seen_before(generated(), first + int(i))[-5:] for i in ids]
    assert found[HISTORY].to_pylist() == [[item for item, _ in pairs] for pairs in expected]
    assert found[c.HISTORY_LABELS].to_pylist() == [[label for _, label in pairs] for pairs in expected]
    assert rows.lengths[ids].tolist() == list(map(len, expected))
    batch = collate(found, 1, Cut.NOWHERE)
    width = max(map(len, expected))
    assert batch.label_BL is not None and batch.label_BL.dtype is torch.int64
    assert batch.label_BL.tolist() == [[0] * (width - len(p)) + [label + 1 for _, label in p] for p in expected]
    assert torch.equal(batch.label_BL > 0, batch.history_BL > 0)


def test_they_are_written_once_and_always_alike(folder: str) -> None:
    def files() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(folder, "rated").iterdir()}

    before, data = files(), Prepared(folder)
    assert set(before) == {"users.parquet", *(f"{split}.parquet" for split in c.SPLITS), "rated.json"}
    prepare_beside(Config(), data, {Beside.RATED})
    assert files() == before
    Path(folder, "rated", "rated.json").unlink()  # as if the command had been killed before it
    assert not data.has(Beside.RATED)
    prepare_beside(Config(), data, {Beside.RATED})
    assert {name: content for name, (content, _) in files().items()} == {name: one for name, (one, _) in before.items()}


def test_liked_histories_are_as_they_were(folder: str) -> None:
    found = RowSource(folder, "test", Stream.INTERACTIONS, 5).open().fetch(np.arange(20))
    assert found.column_names == [c.ROW, c.USER_ID, c.ITEM_ID, c.LABEL, HISTORY]
    expected = [[item for item, label in seen_before(generated(), 120 + i) if label][-5:] for i in range(20)]
    assert found[HISTORY].to_pylist() == expected


# ------------------------------------------------------------------------------------------------------------ encoders

ROWS = [[3], [1, 2, 3, 4, 5], [7, 7, 20], list(range(8, 17)), []]
LABELS = [[1], [2, 1, 1, 2, 1], [2, 2, 1], [1, 2, 1, 1, 2, 2, 1, 2, 1], []]


def encoder(kind: EncoderKind, history: History = History.RATED, *, items: int = ITEMS) -> SequenceEncoder:
    torch.manual_seed(2)
    heads = {"heads": 2} if kind is EncoderKind.SASREC else {}
    config = EncoderConfig.model_validate({"kind": kind, "width": 8, "dropout": 0, "history": history} | heads)
    made = build_encoder(config, ModelShape(users=USERS, items=items, max_len=MAX_LEN))
    assert isinstance(made, SequenceEncoder)
    shake(made, by=0.4)
    return made.eval()


def batch(
    rows: list[list[int]] = ROWS, labels: list[list[int]] = LABELS, items: list[int] | None = None, likes: Any = None
) -> Batch:
    count = len(rows)
    return Batch(
        user_B=torch.zeros(count).long(),
        history_BL=padded(rows, MAX_LEN),
        item_B=torch.tensor(items or [4, 9, 1, 20, 7][:count]),
        label_B=torch.tensor(likes or [1.0, 0.0, 1.0, 0.0, 1.0][:count]),
        label_BL=padded(labels, MAX_LEN),
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_rated_item_is_its_vector_plus_its_labels(kind: EncoderKind) -> None:
    """The encoder of liked items, given one more item for each pair of item and label, says the same."""
    model, plain = encoder(kind), encoder(kind, History.LIKED, items=2 * ITEMS)
    assert model.label is not None and plain.label is None
    shared = {name: value for name, value in model.state_dict().items() if name not in ("item.weight", "label.weight")}
    plain.load_state_dict(shared, strict=False)
    for label in (1, 2):
        start = ITEMS * (label - 1) + 1
        plain.item.weight[start : start + ITEMS] = model.item.weight[1:] + model.label.weight[label]
    rows = batch()
    assert rows.label_BL is not None
    twice_BL = torch.where(rows.history_BL > 0, rows.history_BL + ITEMS * (rows.label_BL - 1), 0)
    found = model.encode(rows.history_BL, rows.label_BL)
    known_BL = rows.history_BL > 0
    torch.testing.assert_close(found[known_BL], plain.encode(twice_BL)[known_BL], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.user_vectors(rows), plain.encode(twice_BL, newest_only=True)[:, -1])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_label_counts_from_its_place_on(kind: EncoderKind) -> None:
    model, rows = encoder(kind), batch()
    assert rows.label_BL is not None
    changed_BL = rows.label_BL.clone()
    changed_BL[3, 4] = 3 - changed_BL[3, 4]
    before, after = (model.encode(rows.history_BL, labels) for labels in (rows.label_BL, changed_BL))
    assert torch.equal(before[3, :4], after[3, :4])
    assert (before[3, 4:] != after[3, 4:]).any(-1).all()
    others = [0, 1, 2, 4]
    assert torch.equal(before[others], after[others])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_harmless(kind: EncoderKind) -> None:
    model, rows = encoder(kind), batch()
    scores = model.score(rows)
    for i, (row, labels) in enumerate(zip(ROWS, LABELS, strict=True)):
        width = max(1, len(row))
        alone = replace(
            batch([row], [labels], [int(rows.item_B[i])]),
            history_BL=padded([row], width),
            label_BL=padded([labels], width),
        )
        torch.testing.assert_close(model.score(alone)[0], scores[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_has_no_label(kind: EncoderKind) -> None:
    model, rows = encoder(kind), batch()
    assert torch.equal(model.item_vectors(rows.item_B), model.item.weight[rows.item_B])
    model.score(rows).sum().backward()
    assert model.label is not None and model.label.weight.grad is not None
    assert not model.label.weight.grad[0].any() and model.label.weight.grad[1:].any(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_must_be_there(kind: EncoderKind) -> None:
    with pytest.raises(AssertionError, match="holds liked histories"):
        encoder(kind).score(replace(batch(), label_BL=None))


def following(row: list[int], labels: list[int], item: int, like: float) -> list[int]:
    """The next liked item behind each place of a history, 0 for none."""
    behind = [*zip(row, labels, strict=True), (item, 2 if like else 1)]
    return [next((i for i, label in behind[at + 1 :] if label == 2), 0) for at in range(len(row))]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_next_is_the_next_liked_item(kind: EncoderKind) -> None:
    """In a catalogue of two the other item is no matter of chance."""
    model = encoder(kind, items=2).double()
    rows = [[1, 2, 2, 1, 1], [2], [], [1, 1]]
    labels = [[2, 1, 1, 2, 1], [1], [], [2, 1]]
    items, likes = [1, 1, 2, 2], [1.0, 1.0, 1.0, 0.0]
    given = batch(rows, labels, items, likes)
    states, vectors = model.encode(given.history_BL, given.label_BL), model.item.weight
    sampled, whole = [], []
    for i, row in enumerate(rows):
        for state, wanted in zip(
            states[i, MAX_LEN - len(row) :], following(row, labels[i], items[i], likes[i]), strict=True
        ):
            if wanted:
                this, other = float(state @ vectors[wanted]), float(state @ vectors[3 - wanted])
                sampled.append(np.log1p(np.exp(-this)) + np.log1p(np.exp(other)))
                whole.append(np.log(np.exp(this) + np.exp(other)) - this)
    assert [following(*of) for of in zip(rows, labels, items, likes, strict=True)] == [[1, 1, 1, 1, 1], [1], [], [0, 0]]
    assert float(next_item(SASRecLLM(model, None, None), given)) == pytest.approx(np.mean(sampled), rel=1e-6)
    assert float(softmax(SASRecLLM(model, None, None), given)) == pytest.approx(np.mean(whole), rel=1e-5)


def test_of_liked_items_alone_it_is_what_it_was() -> None:
    model, liked = encoder(EncoderKind.SASREC), [[2] * len(row) for row in ROWS]
    with torch.no_grad():
        model.label.weight.zero_()  # type: ignore[union-attr]
    plain = encoder(EncoderKind.SASREC, History.LIKED)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "label.weight"})
    rows = batch(labels=liked)
    for loss in (softmax, next_item):
        torch.manual_seed(0)
        found = loss(SASRecLLM(model, None, None), rows)
        torch.manual_seed(0)
        assert torch.equal(found, loss(SASRecLLM(plain, None, None), replace(rows, label_BL=None)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ENCODERS[EncoderKind.GRU].losses)
def test_it_learns(kind: EncoderKind, loss: Loss) -> None:
    objective = Objective(SASRecLLM(encoder(kind), None, None), loss, PretrainEncoderConfig(loss=loss).of_loss)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    values = []
    for _ in range(40):
        torch.manual_seed(0)
        value = objective(batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]
    assert not objective.model.encoder.label.weight[0].any()


# ----------------------------------------------------------------------------------------------- below a language model


def test_rows_that_liked_the_same_keep_their_own_user_vectors() -> None:
    """Two rows of one prompt history; between them an item was rated and not liked."""
    table = pa.table(
        {
            c.USER_ID: pa.array([0, 0], pa.int32()),
            c.ITEM_ID: pa.array([5, 6], pa.int32()),
            c.LABEL: pa.array([0, 1], pa.int8()),
            HISTORY: pa.array([[1, 2], [1, 2, 5]], pa.list_(pa.int32())),
            c.HISTORY_LABELS: pa.array([[1, 0], [1, 0, 0]], pa.list_(pa.int8())),
            c.SHARED: pa.array([1, 1]),
            c.HYBRID_TOKENS: pa.array([[11, 12, 13, 14]] * 2, pa.list_(pa.int32())),
            c.USER_AT: pa.array([1, 1], pa.int32()),
            c.TITLE_AT: pa.array([2, 2], pa.int32()),
            c.ITEM_AT: pa.array([3, 3], pa.int32()),
        }
    )
    scored, learned = (collate(table, 1, cut).prompt for cut in (Cut.TITLE, Cut.LEARNING))
    assert isinstance(scored, SplitPrompt) and isinstance(learned, SplitPrompt)
    assert scored.soft_at_B2K is not None and (scored.soft_at_B2K >= 0).all()  # behind the prefix that they share
    assert len(scored.prefix_UP) == 1 and torch.equal(scored.suffix_BS, learned.suffix_BS)
    shared = collate(table.drop_columns([c.HISTORY_LABELS]), 1, Cut.TITLE).prompt
    assert isinstance(shared, SplitPrompt) and shared.soft_at_B2K is not None and (shared.soft_at_B2K < 0).any()

    class Told(nn.Module):
        features = None

        def forward(self, vectors_BD: Tensor, features_BF: None = None) -> Tensor:
            return vectors_BD[:, None]

    encode = encoder(EncoderKind.GRU)
    model = SASRecLLM(encode, Told(), None)  # type: ignore[arg-type]
    with torch.no_grad():
        rows = collate(table, 1, Cut.TITLE)
        found = model.soft_tokens(rows)
        assert torch.equal(found[:, 0, 0], encode.user_vectors(replace(rows, prompt=None)))
        assert not torch.equal(found[0, 0], found[1, 0])
