"""Centred encoders: scores count from that of the mean item of the training rows, which comes with the data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sequences import padded, shake
from torch import Tensor

from rayrec.batch import Batch
from rayrec.config import Config, differences, identity
from rayrec.config.model import EncoderConfig
from rayrec.data import columns as c
from rayrec.data.catalogue import target_shares
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build_encoder
from rayrec.stages import EncoderKind, Part, StageName
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.model import ScoringJob, cast_weights, scoring_model, stage_model
from rayrec.training.parts import save_part

ITEMS, MAX_LEN, WIDTH = 6, 5, 8
SEQUENCES = [EncoderKind.SASREC, EncoderKind.GRU, EncoderKind.BERT4REC]
SHARES = torch.tensor([0.0, 0.4, 0.1, 0.0, 0.25, 0.05, 0.2])
SOME = Batch(
    torch.tensor([1, 2, 1, 2]),
    padded([[3], [1, 2, 6], [], [5, 5, 1, 4, 2]]),
    torch.tensor([4, 1, 3, 6]),
    torch.tensor([1.0, 0.0, 1.0, 1.0]),
    floor_B=torch.tensor([0.5, -1.0, 2.0, 0.0]),
)


def encoder(kind: EncoderKind = EncoderKind.SASREC, **more: Any) -> SequenceEncoder:
    torch.manual_seed(2)
    tree = {"kind": kind, "width": WIDTH, "dropout": 0, "offset": "feature_floor", "centred": True} | more
    made = build_encoder(EncoderConfig.model_validate(tree), ModelShape(users=2, items=ITEMS, max_len=MAX_LEN))
    shake(made)
    assert isinstance(made, SequenceEncoder)
    if made.share_V is not None:
        made.centre_on(SHARES)
    return made


def asked_of_all(made: SequenceEncoder, row: int) -> Tensor:
    """One row's own scores of the whole catalogue, shape (items,)."""
    of_row = replace(SOME.without_prompts(torch.full((ITEMS,), row)), item_B=torch.arange(1, ITEMS + 1))
    return made.own_score(of_row)


@torch.no_grad()
@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_score_counts_from_the_mean_items(kind: EncoderKind) -> None:
    made, plain = encoder(kind), encoder(kind, centred=False)
    plain.load_state_dict(made.state_dict())  # what the data says of items is no weight
    found, all_scores = made.own_score(SOME), [asked_of_all(plain, row) for row in range(4)]
    for row, (item, score) in enumerate(zip(SOME.item_B.tolist(), found.tolist(), strict=True)):
        mean = sum(float(SHARES[i]) * float(all_scores[row][i - 1]) for i in range(1, ITEMS + 1))
        assert score == pytest.approx(float(all_scores[row][item - 1]) - mean, abs=1e-5)
    assert (found - plain.own_score(SOME)).abs().min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", SEQUENCES)
def test_it_cannot_say_how_freely_a_user_likes(kind: EncoderKind) -> None:
    """Over the items that training asks about, a user's own scores have the mean 0, whoever the user is."""
    made = encoder(kind)
    for row in range(4):
        scores = asked_of_all(made, row)
        assert scores.std() > 1e-3 and float(scores @ SHARES[1:]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_the_mean_item_learns_with_the_items(kind: EncoderKind) -> None:
    """The gradient of one item's score: it rises with its vector, and falls with every item's by its share."""
    made = encoder(kind)
    one = SOME.without_prompts(torch.tensor([2]))  # an empty history: its target is item 3, which training lacks
    made.own_score(one).backward()
    user_D, grad_VD = made.user_vectors(one)[0].detach(), made.item.weight.grad
    assert grad_VD is not None
    expected = -SHARES[1:, None] * user_D
    expected[2] += user_D
    torch.testing.assert_close(grad_VD[1 : ITEMS + 1], expected)


# The data says what it is centred on


def prepared(folder: Path, targets: list[int]) -> str:
    ids = range(1, ITEMS + 1)
    folder.mkdir()
    items = pa.table([list(ids), [str(i) for i in ids], [f"title {i}" for i in ids]], schema=c.ITEMS_SCHEMA)
    pq.write_table(items, folder / "items.parquet")
    fixed = {c.RATING: 0.0, c.LABEL: 1, c.SEEN: 0, c.IS_WARM: True, c.IS_STRICT_COLD: False, c.USER_ID: 1}
    for split, asked in {"train": targets, "valid": [6] * 5}.items():
        rows = [fixed | {c.ITEM_ID: item, c.TIMESTAMP: at} for at, item in enumerate(asked)]
        pq.write_table(pa.Table.from_pylist(rows, c.ROWS_SCHEMA), folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))


def test_shares_are_of_the_training_rows(tmp_path: Path) -> None:
    found = target_shares(prepared(tmp_path / "data", [2, 5, 2, 2]))
    assert found.tolist() == [0, 0, 0.75, 0, 0, 0.25, 0]


def config(**encoder_: Any) -> Config:
    own = {"width": WIDTH, "heads": 2, "dropout": 0, "offset": "feature_floor", "centred": True} | encoder_
    return Config.model_validate({"encoder": own})


FACTS = DataFacts(users=2, items=ITEMS, max_len=MAX_LEN, rows={"train": 4})


def shares_of(model: SASRecLLM) -> list[list[float]]:
    assert model.encoder is not None
    found = [held.share_V for held in model.encoder.modules() if isinstance(held, SequenceEncoder)]
    assert all(share_V is not None for share_V in found)
    return [share_V.tolist() for share_V in found if share_V is not None]


@pytest.mark.parametrize("members", [1, 3])
def test_training_and_scoring_read_them(members: int, tmp_path: Path) -> None:
    told, folder = config(members=members), prepared(tmp_path / "data", [2, 5, 2, 2])
    job = StageJob(config=told, stage=StageName.PRETRAIN_ENCODER, facts=FACTS, data=folder)
    trained = stage_model(job)
    assert shares_of(trained) == [[0, 0, 0.75, 0, 0, 0.25, 0]] * members
    shake(trained)
    weights = {name: p.detach() for name, p in trained.parts()[Part.ENCODER].items()}
    assert not any("share_V" in name for name in weights)
    save_part(str(tmp_path / "encoder"), Part.ENCODER, weights, {})
    parts = {Part.ENCODER: str(tmp_path / "encoder")}
    scores = scoring_model(ScoringJob(config=told, facts=FACTS, data=folder, parts=parts, uses_backbone=False))
    torch.testing.assert_close(scores(SOME), trained(SOME))
    other = prepared(tmp_path / "other", [1, 3])
    moved = scoring_model(ScoringJob(config=told, facts=FACTS, data=other, parts=parts, uses_backbone=False))
    assert shares_of(moved)[0] == [0, 0.5, 0, 0.5, 0, 0, 0] and not torch.equal(moved(SOME), trained(SOME))


@torch.no_grad()
def test_shares_stay_fp32_below_a_backbone_of_less() -> None:
    made = encoder()
    exact = made.score(SOME)
    cast_weights(SASRecLLM(made, None, None), "bf16")
    assert made.share_V is not None and made.share_V.dtype is torch.float32 and torch.equal(made.share_V, SHARES)
    torch.testing.assert_close(made.score(SOME), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"centred": True}, "centred says which items a user likes more, not how freely: it needs an offset"),
        ({"centred": True, "offset": "feature_floor", "kind": "mf"}, "mf does not read centred; leave it out"),
    ],
)
def test_what_would_have_no_level_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate(tree)


def test_it_is_another_run() -> None:
    assert differences(identity(config(centred=False)), identity(config())) == ["encoder.centred: None -> True"]
