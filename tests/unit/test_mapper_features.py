"""A mapper that reads the feature floor's features: where it begins, whose tokens tell them, what is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rayrec.batch import FEATURES, Batch
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside, read_beside
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import resolve_answers
from rayrec.data.rows import HISTORY, RowSource
from rayrec.data.tokenise import load_tokenizer
from rayrec.errors import InputError
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.stages import Part, StageName, Stream
from rayrec.training.footprint import footprint
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import load_part, save_part

TRAINED = {Part.ENCODER, Part.MAPPER}
TOLD = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(5)).tolist()


def config(*, on: bool = True) -> Config:
    mapper = {"features": "feature_floor"} if on else {}
    tree: dict[str, Any] = {"encoder": {"width": 16, "dropout": 0}, "mapper": mapper, "lora": {"dropout": 0}}
    return Config.model_validate(tree | {"engine": {"precision": "fp32"}})


def shape(tiny: Path, **more: Any) -> ModelShape:
    answers = resolve_answers(load_tokenizer(tiny))
    return ModelShape(users=8, items=20, max_len=8, backbone=tiny, answers=(answers.yes, answers.no), **more)


def hybrid(tiny: Path, *, on: bool = True) -> SASRecLLM:
    torch.manual_seed(0)
    made = build(config(on=on), shape(tiny), parts=frozenset(Part), with_backbone=True)
    torch.manual_seed(1)
    for parameter in made.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    calibrate_mapper(made)
    made.freeze_all_but(TRAINED)
    made.set_mode(TRAINED)
    return made


def learned(tiny: Path) -> SASRecLLM:
    """Its weights of the features are no longer zero."""
    made = hybrid(tiny)
    assert made.mapper is not None and made.mapper.features is not None
    torch.manual_seed(2)
    nn.init.normal_(made.mapper.features.weight, std=0.05)
    return made


def rows(cut: Cut = Cut.LEARNING) -> Batch:
    """Rows of two histories, with hybrid prompts."""
    starts, ends = [[*range(40, 49)], [*range(60, 64)]] * 3, [[80], [81, 82], [83], [84, 85, 86], [87], [88]]
    at = [len(start) for start in starts]
    table = pa.table(
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
            c.FEATURES: pa.array(TOLD, pa.list_(pa.float32())),
        }
    )
    return collate(table, 1, cut)


def test_it_begins_as_one_that_reads_none(tiny: Path) -> None:
    plain = hybrid(tiny, on=False)
    with torch.no_grad():
        assert torch.equal(hybrid(tiny)(rows()), plain(rows()))
        assert not torch.allclose(learned(tiny)(rows()), plain(rows()), atol=1e-3)


def test_the_items_tokens_tell_them_and_the_users_do_not(tiny: Path) -> None:
    model, batch = learned(tiny), rows(Cut.TITLE)
    assert batch.features_BF is not None
    with torch.no_grad():
        before = model.soft_tokens(batch)
        after = model.soft_tokens(replace(batch, features_BF=batch.features_BF.roll(1, 1)))
        at_their_means = model.soft_tokens(replace(batch, features_BF=torch.zeros(6, FEATURES)))
        plain = hybrid(tiny, on=False).soft_tokens(batch)
    assert torch.equal(before[:, 0], after[:, 0]) and not (before[:, 1] == after[:, 1]).all(-1).any()
    torch.testing.assert_close(at_their_means, plain)


def test_they_learn_from_the_first_step_on(tiny: Path) -> None:
    model, batch = hybrid(tiny), rows()
    optimizer = torch.optim.SGD(trainable(model, TRAINED).values(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.label_B)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        weight = model.parts()[Part.MAPPER]["features.weight"]
        assert weight.grad is not None and weight.grad.any() and weight.any()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("cut", [Cut.LEARNING, Cut.TITLE])
def test_the_fast_path_is_the_plain_one(cut: Cut, tiny: Path) -> None:
    model, found = learned(tiny), []
    for batch in (rows(Cut.NOWHERE), rows(cut)):
        model.zero_grad()
        logit = model(batch)
        (logit * torch.linspace(-1, 2, 6)).square().sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"logit": logit.detach()} | (grads if cut is Cut.LEARNING else {}))
    assert "mapper.features.weight" in found[0] or cut is Cut.TITLE
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_they_must_be_there(tiny: Path) -> None:
    with pytest.raises(AssertionError, match="no features to read"):
        hybrid(tiny)(replace(rows(), features_BF=None))


# What is kept, streamed, counted and refused


def test_the_weights_are_saved_and_loaded_with_the_mapper(tiny: Path, tmp_path: Path) -> None:
    model, other = learned(tiny), hybrid(tiny)
    weights = {name: p.detach() for name, p in model.parts()[Part.MAPPER].items()}
    save_part(str(tmp_path / "mapper"), Part.MAPPER, weights, {})
    load_part(str(tmp_path / "mapper"), Part.MAPPER, other)
    assert torch.equal(other(rows()), model(rows()))
    with pytest.raises(InputError, match=r"tensor 'features\.weight' is only on one side"):
        load_part(str(tmp_path / "mapper"), Part.MAPPER, hybrid(tiny, on=False))


def test_they_come_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    (folder / "features").mkdir(parents=True)
    fixed = {c.RATING: 0.0, c.LABEL: 1, c.SEEN: 0, c.IS_WARM: True, c.IS_STRICT_COLD: False, c.USER_ID: 0}
    stored = [fixed | {c.ITEM_ID: i + 1, c.TIMESTAMP: i} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(stored, c.ROWS_SCHEMA), folder / "valid.parquet")
    users = [{c.USER_ID: 0, c.SOURCE_ID: "0", c.LIKED: [1, 2]}]
    pq.write_table(pa.Table.from_pylist(users, c.USERS_SCHEMA), folder / "users.parquet")
    told = pa.table([pa.array(TOLD, pa.list_(pa.float32()))], c.FEATURES_SCHEMA)
    pq.write_table(told, folder / "features" / "valid.parquet", row_group_size=2)
    source = RowSource(str(folder), "valid", Stream.INTERACTIONS, 4)
    ids = torch.tensor([5, 0, 2, 2])
    found = replace(source, beside=frozenset({Beside.FEATURES})).open().fetch(ids.numpy())
    batch = collate(found.slice(1), 1, Cut.NOWHERE)
    assert batch.features_BF is not None and batch.features_BF.dtype is torch.float32
    assert torch.equal(batch.features_BF, torch.tensor(TOLD)[ids[1:]])
    assert batch.to(torch.device("meta")).features_BF.is_meta  # type: ignore[union-attr]
    assert torch.equal(batch.without_prompts(torch.tensor([2])).features_BF, batch.features_BF[2:])  # type: ignore[arg-type]
    assert collate(source.open().fetch(ids.numpy()), 1, Cut.NOWHERE).features_BF is None


def test_they_are_read_with_hybrid_prompts_alone() -> None:
    assert [stream for stream in Stream if Beside.FEATURES in read_beside(config(), stream)] == [Stream.HYBRID_PROMPTS]
    assert not any(Beside.FEATURES in read_beside(Config(), stream) for stream in Stream)


@pytest.mark.parametrize(("stage", "own"), [(StageName.PRETRAIN_ENCODER, 0), (StageName.TUNE_HYBRID, FEATURES * 160)])
def test_the_plan_counts_them(stage: StageName, own: int, tiny: Path) -> None:
    facts = DataFacts(users=8, items=20, max_len=8, rows={"train": 100})
    counts = []
    for on in (True, False):
        job = StageJob(config=config(on=on), stage=stage, facts=facts, data="")
        counts.append(footprint(job, shape(tiny, empty=True)).trainable)
    assert counts[0] - counts[1] == own
