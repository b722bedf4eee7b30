"""Encoders with members: each is and learns what it would alone, and together they answer by their mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sequences import padded, shake
from torch import Tensor

from rayrec.batch import Batch
from rayrec.config import Config
from rayrec.config.model import EncoderConfig
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.averaged import Averaged
from rayrec.models.encoder import Encoder
from rayrec.models.objectives import label_bce
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, build_encoder
from rayrec.stages import EncoderKind, Part, StageName
from rayrec.training.footprint import footprint
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import load_part, save_part

USERS, ITEMS, MAX_LEN, WIDTH, MEMBERS = 6, 30, 9, 16, 3
SHAPE = ModelShape(users=USERS, items=ITEMS, max_len=MAX_LEN)
ROWS = [[3], [1, 2, 3, 4, 5], [], [7, 7, 30], list(range(10, 19)), [5, 4, 3, 2, 1, 30, 29, 28]]
SOME = Batch(
    torch.tensor([2, 5, 0, 2, 6, 1]),
    padded(ROWS),
    torch.tensor([4, 30, 1, 1, 9, 17]),
    torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0]),
    floor_B=torch.tensor([0.3, -1.7, 2.2, 0.0, -0.4, 3.1]),
)


def config(kind: EncoderKind = EncoderKind.SASREC, **more: Any) -> EncoderConfig:
    no_dropout = {} if kind is EncoderKind.MF else {"dropout": 0.0}
    return EncoderConfig.model_validate({"kind": kind, "width": WIDTH, "members": MEMBERS, **no_dropout, **more})


def averaged(kind: EncoderKind = EncoderKind.SASREC, **more: Any) -> Averaged:
    torch.manual_seed(1)
    made = build_encoder(config(kind, **more), SHAPE)
    assert isinstance(made, Averaged)
    for member in made.members:
        shake(member)
    return made


def alone(made: Averaged, kind: EncoderKind = EncoderKind.SASREC, **more: Any) -> list[Encoder]:
    """Its members' weights in encoders of their own."""
    found = []
    for member in made.members:
        single = build_encoder(config(kind, members=1, **more), SHAPE)
        single.load_state_dict(member.state_dict())
        found.append(single)
    return found


@torch.no_grad()
@pytest.mark.parametrize("offset", [None, "feature_floor"])
@pytest.mark.parametrize("kind", EncoderKind)
def test_the_score_is_the_members_mean(kind: EncoderKind, offset: str | None) -> None:
    made = averaged(kind, offset=offset)
    each_MB = torch.stack([single.score(SOME) for single in alone(made, kind, offset=offset)])
    assert len(each_MB) == MEMBERS and each_MB.std(0).min() > 0.01  # they do differ
    torch.testing.assert_close(made.scores(SOME), each_MB)
    torch.testing.assert_close(made.score(SOME), sum(each_MB) / MEMBERS)
    own_MB = torch.stack([single.own_score(SOME) for single in alone(made, kind, offset=offset)])
    torch.testing.assert_close(made.own_score(SOME), own_MB.mean(0))


@torch.no_grad()
@pytest.mark.parametrize("kind", [EncoderKind.SASREC, EncoderKind.GRU, EncoderKind.BERT4REC])
def test_what_the_mapper_reads_has_their_mean_as_its_product(kind: EncoderKind) -> None:
    made = averaged(kind)
    user_BW, item_BW = made.user_vectors(SOME), made.item_vectors(SOME.item_B)
    assert user_BW.shape == item_BW.shape == (len(ROWS), config(kind).vector_width) == (6, MEMBERS * WIDTH)
    torch.testing.assert_close((user_BW * item_BW).sum(-1), made.score(SOME))
    second = alone(made, kind)[1].user_vectors(SOME)
    torch.testing.assert_close(user_BW[:, WIDTH : 2 * WIDTH] * MEMBERS**0.5, second)


def test_each_learns_as_it_would_alone() -> None:
    """Its gradient is that of its own loss by their number, whatever the others say."""
    made = averaged(offset="feature_floor")
    loss = label_bce(SASRecLLM(made, None, None), SOME)
    loss.backward()
    own: list[Tensor] = []
    for member, single in zip(made.members, alone(made, offset="feature_floor"), strict=True):
        own.append(label_bce(SASRecLLM(single, None, None), SOME))
        own[-1].backward()
        expected = {name: p.grad / MEMBERS for name, p in single.named_parameters() if p.grad is not None}
        found = {name: p.grad for name, p in member.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys() and found["offset.own"].any()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)
    torch.testing.assert_close(loss, sum(own) / MEMBERS)
    together = torch.nn.functional.binary_cross_entropy_with_logits(made.score(SOME), SOME.label_B)
    assert loss - together > 0.01  # the mean's own loss, by which they would learn to lean on each other, is another


@torch.no_grad()
def test_members_differ_in_what_is_drawn_for_them() -> None:
    """The first is drawn as an encoder without others, and dropout hides other cells of each."""
    torch.manual_seed(7)
    made = build_encoder(config(), SHAPE)
    torch.manual_seed(7)
    single = build_encoder(config(members=1), SHAPE)
    first, second, third = (member.state_dict() for member in made.get_submodule("members").children())
    assert all(torch.equal(first[name], value) for name, value in single.state_dict().items())
    assert len({float(held["item.weight"].sum()) for held in (first, second, third)}) == MEMBERS
    dropped = averaged(dropout=0.5)
    for member in dropped.members:
        member.load_state_dict(dropped.members[0].state_dict())
    assert torch.equal(*dropped.eval().scores(SOME)[:2])
    assert not torch.equal(*dropped.train().scores(SOME)[:2])


# Below the language model, in files, in a plan


def hybrid(tiny: Path, **mapper: Any) -> SASRecLLM:
    torch.manual_seed(0)
    answers = resolve_answers(load_tokenizer(tiny))
    held = Config.model_validate({"encoder": config().model_dump(), "mapper": mapper, "engine": {"precision": "fp32"}})
    shape = replace(SHAPE, backbone=tiny, answers=(answers.yes, answers.no))
    return build(held, shape, parts=frozenset(Part), with_backbone=True)


def test_soft_tokens_carry_all_members(tiny: Path) -> None:
    model = hybrid(tiny, tokens=2)
    assert isinstance(model.encoder, Averaged) and model.mapper is not None
    soft_B2KH = model.soft_tokens(SOME)
    assert soft_B2KH.shape[:3] == (len(ROWS), 2, 2) and model.mapper.expand.in_features == MEMBERS * WIDTH
    soft_B2KH.square().sum().backward()
    for member in model.encoder.members:
        assert member.get_parameter("item.weight").grad.any()  # type: ignore[union-attr]


def test_members_are_saved_and_loaded_as_one_part(tiny: Path, tmp_path: Path) -> None:
    model, other = hybrid(tiny), hybrid(tiny)
    assert model.encoder is not None and other.encoder is not None
    shake(model.encoder)
    save_part(str(tmp_path / "encoder"), Part.ENCODER, model.parts()[Part.ENCODER], {})
    assert not torch.equal(other.encoder.score(SOME), model.encoder.score(SOME))
    load_part(str(tmp_path / "encoder"), Part.ENCODER, other)
    assert torch.equal(other.encoder.score(SOME), model.encoder.score(SOME))


def test_the_plan_counts_every_member() -> None:
    facts, counts = DataFacts(users=USERS, items=ITEMS, max_len=MAX_LEN, rows={"train": 100}), []
    for members in (1, MEMBERS):
        held = Config.model_validate({"encoder": config(members=members).model_dump()})
        job = StageJob(config=held, stage=StageName.PRETRAIN_ENCODER, facts=facts, data="")
        counts.append(footprint(job, replace(SHAPE, empty=True)))
    assert counts[1].trainable == MEMBERS * counts[0].trainable
    assert counts[1].activations > 2 * counts[0].activations


def test_a_loss_that_asks_a_single_encoder_is_refused() -> None:
    tree = {"encoder": {"members": 2}, "stages": {"pretrain_encoder": {"loss": "next_item"}}}
    with pytest.raises(ValueError, match=r"encoder\.members: next_item teaches a single encoder; .* label_bce"):
        Config.model_validate(tree)
    with pytest.raises(ValueError, match=r"encoder\.members\n.*greater than 0"):
        Config.model_validate({"encoder": {"members": 0}})
