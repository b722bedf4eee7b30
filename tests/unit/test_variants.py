"""The method's variants: what a stage starts from, what it trains, and the model that comes of it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.models.sasrecllm import SASRecLLM, trainable
from rayrec.stages import Part, StageName
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.loop import Stage
from rayrec.training.model import stage_model
from rayrec.training.parts import save_part

ENCODER, MAPPER, LORA = Part.ENCODER, Part.MAPPER, Part.LORA
PRETRAIN, TUNE_LORA, HYBRID = StageName.PRETRAIN_ENCODER, StageName.TUNE_LORA, StageName.TUNE_HYBRID
FROM_SCRATCH = {"starts_from": {"encoder": "fresh"}}
WITHOUT_LORA = {"starts_from": {"lora": "none"}}
JOINT = {"trains": ["encoder", "mapper", "lora"], "starts_from": {"encoder": "fresh", "lora": "fresh"}}
LORA_GOES_ON = {"trains": ["encoder", "mapper", "lora"]}


def config(hybrid: dict[str, Any], **changes: Any) -> Config:
    base = {"encoder": {"width": 16, "max_len": 8}, "engine": {"precision": "fp32"}, "cluster": {"workers": 1}}
    return Config.model_validate(base | {"stages": {"tune_hybrid": hybrid}} | changes)


@pytest.mark.parametrize(
    ("hybrid", "trained", "parts", "lineage"),
    [
        ({}, {ENCODER, MAPPER}, set(Part), [PRETRAIN, TUNE_LORA, HYBRID]),
        ({"trains": ["mapper"]}, {MAPPER}, set(Part), [PRETRAIN, TUNE_LORA, HYBRID]),
        (LORA_GOES_ON, set(Part), set(Part), [PRETRAIN, TUNE_LORA, HYBRID]),
        (FROM_SCRATCH, {ENCODER, MAPPER}, set(Part), [TUNE_LORA, HYBRID]),
        (WITHOUT_LORA, {ENCODER, MAPPER}, {ENCODER, MAPPER}, [PRETRAIN, HYBRID]),
        (JOINT, set(Part), set(Part), [HYBRID]),
        ({"starts_from": {"encoder": "/p"}}, {ENCODER, MAPPER}, set(Part), [TUNE_LORA, HYBRID]),
        ({"trains": ["lora"], "starts_from": {"mapper": "./fresh"}}, {LORA}, set(Part), [PRETRAIN, TUNE_LORA, HYBRID]),
    ],
)
def test_a_stage_needs_the_stages_that_it_inherits_from(
    hybrid: dict[str, Any], trained: set[Part], parts: set[Part], lineage: list[StageName]
) -> None:
    stages = config(hybrid).stages
    assert stages.trained(HYBRID) == trained and stages.parts(HYBRID) == parts
    assert list(stages.lineage(HYBRID)) == lineage and list(stages.lineage(TUNE_LORA)) == [TUNE_LORA]
    assert set(stages.parents(HYBRID).values()) == set(lineage) - {HYBRID}


def test_only_what_is_no_word_is_a_folder() -> None:
    starts = {"encoder": "fresh", "mapper": "./fresh", "lora": "none"}
    assert config({"starts_from": starts}).stages.folders(HYBRID) == {MAPPER: "./fresh"}


# Its model at the first step


def job(
    tiny: Path, hybrid: dict[str, Any], origins: Mapping[Part, str] = MappingProxyType({}), **changes: Any
) -> StageJob:
    facts = DataFacts(users=5, items=20, max_len=8, rows={})
    made = config(hybrid, backbone={"sources": str(tiny)}, **changes)
    return StageJob(config=made, stage=HYBRID, facts=facts, data="", origins=origins)


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))


def weights(model: SASRecLLM, *parts: Part) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainable(model, parts).items()}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


def test_a_fresh_part_is_drawn_from_seed_and_stage(tiny: Path) -> None:
    first = stage_model(job(tiny, JOINT))
    assert not differ(weights(first, *Part), weights(stage_model(job(tiny, JOINT)), *Part))
    other = stage_model(job(tiny, JOINT, seed=1))
    assert all(differ(weights(first, part), weights(other, part)) for part in Part)
    alone = StageJob(config=config(JOINT), stage=PRETRAIN, facts=job(tiny, JOINT).facts, data="")
    assert differ(weights(first, ENCODER), weights(stage_model(alone), ENCODER))  # of another stage
    lora = weights(first, LORA)
    assert all(value.any() == ("lora_A" in name) for name, value in lora.items()) and len(lora) == 8


def test_a_new_mapper_starts_at_the_scale_of_the_words_above_a_fresh_encoder(tiny: Path) -> None:
    model = stage_model(job(tiny, JOINT))
    assert model.encoder is not None and model.mapper is not None and model.backbone is not None
    soft = model.mapper(model.encoder.item_vectors(torch.arange(1, 21))).detach()
    assert float(soft.std()) == pytest.approx(model.backbone.embedding_spread(), rel=1e-5)


def test_what_is_inherited_is_loaded_and_the_rest_fresh(tiny: Path, tmp_path: Path) -> None:
    """A trained LoRA that learns on is not merged; a frozen one is; without one there is nothing to merge."""
    donor = weights(stage_model(job(tiny, JOINT, seed=5)), LORA)
    saved = {name.removeprefix("lora."): torch.full_like(value, 0.1) for name, value in donor.items()}
    save_part(str(tmp_path / "lora"), LORA, saved, {})
    given = {LORA: str(tmp_path / "lora")}
    going_on = stage_model(job(tiny, LORA_GOES_ON | FROM_SCRATCH, given))
    assert not differ(weights(going_on, LORA), {f"lora.{name}": value for name, value in saved.items()})
    assert differ(weights(going_on, ENCODER), weights(stage_model(job(tiny, JOINT, seed=5)), ENCODER))
    bare, merged = stage_model(job(tiny, WITHOUT_LORA)), stage_model(job(tiny, FROM_SCRATCH, given))
    for model in (bare, merged):
        assert LORA not in model.parts() and model.backbone is not None
    layer = "layers.0.self_attn.q_proj.weight"
    plain, tuned = (dict(m.backbone.decoder.named_parameters())[layer] for m in (bare, merged))  # type: ignore[union-attr]
    torch.testing.assert_close(tuned - plain, torch.full_like(plain, 0.1 * 0.1 * 8 * 2), atol=1e-5, rtol=0)  # r 8


# A checkpoint


@pytest.mark.parametrize(
    ("of", "into", "message"),
    [
        (JOINT, FROM_SCRATCH, r"there: lora\..*: shape \(.*\), and in this configuration no such tensor; name a"),
        (FROM_SCRATCH, JOINT, r"there: lora\..*: no such tensor, and in this configuration shape \("),
        (FROM_SCRATCH, {"trains": ["mapper"]}, r"there: encoder\..*: shape .*, and in this configuration no such"),
    ],
    ids=["parts too many", "parts too few", "a part that is frozen here"],
)
def test_a_checkpoint_of_other_parts_is_refused(
    of: dict[str, Any], into: dict[str, Any], message: str, tiny: Path
) -> None:
    source, target = job(tiny, of), job(tiny, into, seed=1, fast={"merge_lora": False})
    held = weights(stage_model(source), *source.trains)
    state = {f"weights/{name}": value for name, value in held.items()}
    stage: Any = SimpleNamespace(model=stage_model(target), job=target)
    with pytest.raises(InputError, match=message):
        Stage._load(stage, state, "there")


def test_a_checkpoint_of_three_parts_comes_back(tiny: Path) -> None:
    source, target = job(tiny, JOINT), job(tiny, JOINT, seed=1)
    held = weights(stage_model(source), *Part)
    stage: Any = SimpleNamespace(model=stage_model(target), job=target)
    state = {f"{kind}/{name}": value for kind in ("weights", "exp_avg") for name, value in held.items()}
    Stage._load(stage, state, "there")
    assert not differ(weights(stage.model, *Part), held)
