"""Scores that start from another's logit: where they begin, what learns, what is kept and handed on."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.batch import Batch
from rayrec.config import Config
from rayrec.config.training import TuneHybridConfig
from rayrec.data import columns as c
from rayrec.data.beside import Beside, read_beside
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import resolve_answers
from rayrec.data.rows import HISTORY, RowSource
from rayrec.data.tokenise import load_tokenizer
from rayrec.errors import InputError
from rayrec.models.offset import Offset
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.stages import EncoderKind, Part, StageName, Stream
from rayrec.training.engine import parameter_groups
from rayrec.training.footprint import footprint
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import load_part, save_part

FLOORS = [0.3, -1.7, 2.2, 0.0, -0.4, 3.1]
TRAINED = {Part.ENCODER, Part.MAPPER}
ON: dict[str, Any] = {"offset": "feature_floor"}
THREE = ["offset.bias", "offset.own", "offset.start"]


def config(*, encoder: bool, mapper: bool, **more: Any) -> Config:
    kind = more.pop("kind", EncoderKind.SASREC)
    own = {"kind": kind, "width": 16} | ({} if kind is EncoderKind.MF else {"dropout": 0})
    tree: dict[str, Any] = {"encoder": own | (ON if encoder else {}), "mapper": ON if mapper else {}}
    return Config.model_validate(tree | {"engine": {"precision": "fp32"}, "lora": {"dropout": 0}} | more)


def shape(tiny: Path, **more: Any) -> ModelShape:
    answers = resolve_answers(load_tokenizer(tiny))
    return ModelShape(users=8, items=20, max_len=8, backbone=tiny, answers=(answers.yes, answers.no), **more)


def hybrid(tiny: Path, *, on: bool = True) -> SASRecLLM:
    torch.manual_seed(0)
    made = build(config(encoder=False, mapper=on), shape(tiny), parts=frozenset(Part), with_backbone=True)
    for parameter in made.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    calibrate_mapper(made)
    made.freeze_all_but(TRAINED)
    made.set_mode(TRAINED)
    return made


def table() -> pa.Table:
    """Rows of two histories, with hybrid prompts."""
    starts, ends = [[*range(40, 49)], [*range(60, 64)]] * 3, [[80], [81, 82], [83], [84, 85, 86], [87], [88]]
    at = [len(start) for start in starts]
    return pa.table(
        {
            c.USER_ID: [1, 2] * 3,
            c.ITEM_ID: [9, 8, 7, 6, 5, 4],
            c.LABEL: [1, 0, 0, 1, 1, 0],
            HISTORY: pa.array([[1, 2, 3], [4]] * 3, pa.list_(pa.int32())),
            c.SHARED: [1, 2] * 3,
            c.HYBRID_TOKENS: pa.array([s + e for s, e in zip(starts, ends, strict=True)], pa.list_(pa.int32())),
            c.USER_AT: [place - 2 for place in at],
            c.TITLE_AT: at,
            c.ITEM_AT: [place + 1 for place in at],
            c.FLOOR: pa.array(FLOORS, pa.float32()),
        }
    )


def rows(cut: Cut = Cut.LEARNING) -> Batch:
    return collate(table(), 1, cut)


def loss(model: SASRecLLM, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch), batch.label_B)


def moved(offset: Offset | None) -> Offset:
    """Away from its start."""
    assert offset is not None
    with torch.no_grad():
        for parameter, value in zip((offset.own, offset.start, offset.bias), (0.5, -0.25, 0.125), strict=True):
            parameter.fill_(value)
    return offset


# Where it begins


@torch.no_grad()
def test_the_sum_by_hand() -> None:
    offset, own = Offset(), torch.tensor([2.0, -1.0, 0.5, 4.0, 0.0, 1.0])
    assert offset(own, rows().floor_B).tolist() == pytest.approx(FLOORS, abs=1e-6)
    found = moved(offset)(own, rows().floor_B).tolist()
    assert found == pytest.approx(
        [x / 2 + 0.75 * f + 1 / 8 for x, f in zip(own.tolist(), FLOORS, strict=True)], abs=1e-6
    )


@torch.no_grad()
def test_a_hybrid_begins_at_the_floor(tiny: Path) -> None:
    with_floor, without = hybrid(tiny), hybrid(tiny, on=False)
    for cut in Cut:
        assert with_floor(rows(cut)).tolist() == pytest.approx(FLOORS, abs=1e-6)
    assert without(rows()).std() > 1e-3  # it does say something of its own
    same = with_floor.parts()[Part.MAPPER].keys() - without.parts()[Part.MAPPER].keys()
    assert sorted(same) == THREE  # and nothing else is drawn otherwise
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, with_floor.get_parameter(name))


@torch.no_grad()
@pytest.mark.parametrize("kind", EncoderKind)
def test_an_encoder_begins_at_the_floor(kind: EncoderKind, tiny: Path) -> None:
    torch.manual_seed(1)
    made = build(config(encoder=True, mapper=False, kind=kind), shape(tiny), parts={Part.ENCODER}, with_backbone=False)
    batch = replace(rows(), prompt=None)
    made.set_mode(())
    assert made(batch).tolist() == pytest.approx(FLOORS, abs=1e-6)
    assert made.encoder is not None
    moved(made.encoder.offset)
    own = made.encoder.own_score(batch)
    torch.testing.assert_close(made(batch), own / 2 + 0.75 * torch.tensor(FLOORS) + 1 / 8)


@torch.no_grad()
@pytest.mark.parametrize("kind", EncoderKind)
def test_outside_training_an_encoder_is_trusted_as_far_as_is_said(kind: EncoderKind, tiny: Path) -> None:
    torch.manual_seed(1)
    tree = config(encoder=True, mapper=False, kind=kind).encoder.model_dump() | {"trust": 0.25}
    made = build(Config.model_validate({"encoder": tree}), shape(tiny), parts={Part.ENCODER}, with_backbone=False)
    assert made.encoder is not None
    moved(made.encoder.offset)
    batch, start = replace(rows(), prompt=None), 0.75 * torch.tensor(FLOORS) + 1 / 8
    for trained, share in (({Part.ENCODER}, 1.0), ((), 0.25)):
        made.set_mode(trained)
        own = made.encoder.own_score(batch)
        torch.testing.assert_close(made(batch), share * own / 2 + start)


def on_its_encoder(tiny: Path, **encoder: Any) -> SASRecLLM:
    torch.manual_seed(0)
    tree = {"encoder": {"width": 16, "dropout": 0} | encoder, "mapper": {"offset": "encoder"}}
    made = build(Config.model_validate(tree), shape(tiny), parts=frozenset(Part), with_backbone=True)
    calibrate_mapper(made)
    made.freeze_all_but(TRAINED)
    made.set_mode(TRAINED)
    return made.float()


@pytest.mark.parametrize("encoder", [{}, ON, {"kind": "gru"}], ids=str)
@pytest.mark.parametrize("cut", Cut)
def test_a_hybrid_begins_at_its_encoders_score(encoder: dict[str, Any], cut: Cut, tiny: Path) -> None:
    model = on_its_encoder(tiny, **encoder)
    assert model.encoder is not None and model.mapper is not None
    if encoder is ON:
        moved(model.encoder.offset)
    with torch.no_grad():
        alone = model.encoder.score(replace(rows(), prompt=None))
        torch.testing.assert_close(model(rows(cut)), alone)
        assert alone.std() > 1e-4
        moved(model.mapper.offset)
        torch.testing.assert_close(model(rows(cut)), model._answer(rows(cut)) / 2 + 0.75 * alone + 1 / 8)


def test_an_encoder_learns_from_both_of_its_ways(tiny: Path) -> None:
    """Through the score that it starts, at once; through the soft tokens, once the language model counts."""
    model = on_its_encoder(tiny, **ON)
    assert model.encoder is not None and model.encoder.offset is not None
    moved(model.encoder.offset)
    model.float()
    loss(model, rows()).backward()
    alone = {name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert alone["item.weight"].any() and alone["offset.own"].any()
    model.zero_grad()
    F.binary_cross_entropy_with_logits(model.encoder.score(replace(rows(), prompt=None)), rows().label_B).backward()
    for name, p in model.encoder.named_parameters():
        torch.testing.assert_close(alone[name], p.grad, msg=name)


@pytest.mark.parametrize(
    ("encoder", "mapper", "of_encoder", "of_hybrid"),
    [
        (None, None, False, False),
        (None, "feature_floor", False, True),
        ("feature_floor", None, True, False),
        (None, "encoder", False, False),
        ("feature_floor", "encoder", True, True),
    ],
)
def test_the_floor_is_read_where_a_score_starts_from_it(
    encoder: str | None, mapper: str | None, of_encoder: bool, of_hybrid: bool
) -> None:
    read = Config.model_validate({"encoder": {"offset": encoder}, "mapper": {"offset": mapper}})
    assert (Beside.FLOOR in read_beside(read, Stream.INTERACTIONS)) is of_encoder
    assert (Beside.FLOOR in read_beside(read, Stream.HYBRID_PROMPTS)) is of_hybrid
    assert Beside.FLOOR not in read_beside(read, Stream.TEXT_PROMPTS)


def test_the_floor_must_be_there(tiny: Path) -> None:
    with pytest.raises(AssertionError, match="no logits to start from"):
        hybrid(tiny)(replace(rows(), floor_B=None))


# What learns


def test_the_language_model_is_silent_for_one_step(tiny: Path) -> None:
    """Its weight is zero and has a gradient; once it is not zero, so have the others."""
    model = hybrid(tiny)
    batch = rows()
    optimizer = torch.optim.SGD(trainable(model, TRAINED).values(), lr=0.5)
    before = loss(model, batch)
    before.backward()
    error = torch.sigmoid(torch.tensor(FLOORS)) - batch.label_B
    grads = {name: p.grad for name, p in model.parts()[Part.MAPPER].items()}
    assert float(grads["offset.bias"]) == pytest.approx(float(error.mean()), abs=1e-6)  # type: ignore[arg-type]
    assert float(grads["offset.start"]) == pytest.approx(float((error * torch.tensor(FLOORS)).mean()), abs=1e-6)  # type: ignore[arg-type]
    assert grads["offset.own"].abs() > 1e-4 and not grads["project.weight"].any()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()
    loss(model, batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parts()[Part.MAPPER].values())
    assert all(p.grad is None for p in model.parts()[Part.LORA].values())
    optimizer.step()
    assert loss(model, batch) < before


def test_decay_leads_back_to_the_floor(tiny: Path) -> None:
    """Of the sum's weights it takes what was learned, not the floor; of the bias nothing."""
    model = hybrid(tiny)
    offset = moved(model.mapper.offset)  # type: ignore[union-attr]
    groups = parameter_groups(model, trainable(model, TRAINED), TuneHybridConfig(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decay[id(p)] for p in (offset.own, offset.start, offset.bias)] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("cut", [Cut.LEARNING, Cut.TITLE])
def test_the_fast_path_is_the_plain_one(cut: Cut, tiny: Path) -> None:
    model, found = hybrid(tiny), []
    moved(model.mapper.offset)  # type: ignore[union-attr]
    for batch in (rows(Cut.NOWHERE), rows(cut)):
        model.zero_grad()
        logit = model(batch)
        (logit * torch.linspace(-1, 2, 6)).square().sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"logit": logit.detach()} | (grads if cut is Cut.LEARNING else {}))
    assert all(f"mapper.{name}" in found[0] for name in THREE) or cut is Cut.TITLE
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_fp32_whatever_the_weights(dtype: torch.dtype) -> None:
    """A weight near one, in 8 bits, would be off by up to 1/256; how far it is from one is not."""
    offset, own = Offset(), torch.zeros(6)
    with torch.no_grad():
        offset.start.fill_(0.003)
    exact = offset(own, rows().floor_B)
    found = offset.to(dtype)(own, rows().floor_B)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    assert (exact - torch.tensor(FLOORS)).abs().max() > 9e-3 - 1e-6


# What is kept, streamed, counted and refused


def test_the_weights_are_saved_and_loaded_with_the_mapper(tiny: Path, tmp_path: Path) -> None:
    model, other = hybrid(tiny), hybrid(tiny)
    moved(model.mapper.offset)  # type: ignore[union-attr]
    weights = {name: p.detach() for name, p in model.parts()[Part.MAPPER].items()}
    save_part(str(tmp_path / "mapper"), Part.MAPPER, weights, {})
    load_part(str(tmp_path / "mapper"), Part.MAPPER, other)
    assert torch.equal(other(rows()), model(rows()))
    with pytest.raises(InputError, match=r"tensor 'offset\.\w+' is only on one side"):
        load_part(str(tmp_path / "mapper"), Part.MAPPER, hybrid(tiny, on=False))


def test_logits_come_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    (folder / "floor").mkdir(parents=True)
    fixed = {c.RATING: 0.0, c.LABEL: 1, c.SEEN: 0, c.IS_WARM: True, c.IS_STRICT_COLD: False, c.USER_ID: 0}
    stored = [fixed | {c.ITEM_ID: i + 1, c.TIMESTAMP: i} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(stored, c.ROWS_SCHEMA), folder / "valid.parquet")
    users = [{c.USER_ID: 0, c.SOURCE_ID: "0", c.LIKED: [1, 2]}]
    pq.write_table(pa.Table.from_pylist(users, c.USERS_SCHEMA), folder / "users.parquet")
    pq.write_table(pa.table([pa.array(FLOORS, pa.float32())], c.FLOOR_SCHEMA), folder / "floor" / "valid.parquet")
    source = RowSource(str(folder), "valid", Stream.INTERACTIONS, 4)
    ids = torch.tensor([5, 0, 2, 2])
    found = replace(source, beside=frozenset({Beside.FLOOR})).open().fetch(ids.numpy())
    batch = collate(found.slice(1), 1, Cut.NOWHERE)
    assert batch.floor_B is not None and batch.floor_B.dtype is torch.float32
    assert batch.floor_B.tolist() == [FLOORS[0], FLOORS[2], FLOORS[2]] or torch.equal(
        batch.floor_B, torch.tensor(FLOORS)[ids[1:]]
    )
    assert batch.to(torch.device("meta")).floor_B.is_meta  # type: ignore[union-attr]
    assert torch.equal(batch.without_prompts(torch.tensor([2])).floor_B, batch.floor_B[2:])  # type: ignore[arg-type]
    assert collate(source.open().fetch(ids.numpy()), 1, Cut.NOWHERE).floor_B is None


@pytest.mark.parametrize(("stage", "own"), [(StageName.PRETRAIN_ENCODER, 3), (StageName.TUNE_HYBRID, 3 + 3)])
def test_the_plan_counts_them(stage: StageName, own: int, tiny: Path) -> None:
    """The encoder's are in the hybrid stage, too, as the biases of matrix factorisation are."""
    facts = DataFacts(users=8, items=20, max_len=8, rows={"train": 100})
    counts = []
    for on in (True, False):
        job = StageJob(config=config(encoder=on, mapper=on), stage=stage, facts=facts, data="")
        counts.append(footprint(job, shape(tiny, empty=True)).trainable)
    assert counts[0] - counts[1] == own


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"encoder": {"offset": "bias_floor"}}, "Input should be 'feature_floor'"),
        ({"encoder": {"trust": 0.5}}, "trust 0.5 says what the encoder's own score counts beside an offset"),
        ({"encoder": ON | {"trust": 1.5}}, "less than or equal to 1"),
        (
            {"encoder": ON, "stages": {"pretrain_encoder": {"loss": "next_item"}}},
            "encoder.offset: next_item does not learn from scores, .* use stages.pretrain_encoder.loss label_bce",
        ),
        (
            {"mapper": ON, "stages": {"tune_hybrid": {"trains": ["encoder"]}}},
            "tune_hybrid.trains: mapper would be drawn and never learn",
        ),
    ],
)
def test_what_could_not_learn_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(tree)
    given = {"tune_hybrid": {"trains": ["encoder"], "starts_from": {"mapper": "/there"}}}
    assert Config.model_validate({"mapper": ON, "stages": given}).mapper.offset == "feature_floor"


def test_the_floors_log_odds_are_its_probability() -> None:
    """What validation and scoring make of a logit at the start is the floor's own score."""
    probability = [0.02, 0.5, 0.731, 0.99]
    logits = torch.tensor([math.log(p / (1 - p)) for p in probability])
    batch = replace(rows(), floor_B=logits)
    assert torch.sigmoid(Offset()(torch.zeros(4), batch.floor_B).double()).tolist() == pytest.approx(
        probability, abs=1e-6
    )
