"""Configurations that are refused: what is wrong is named with its mend."""

from pathlib import Path
from typing import Any

import pytest
from configurations import OF_CLICKS, refused

from rayrec.config import Config, identity
from rayrec.settings import load, validate, with_values
from rayrec.stages import ENCODERS, JUDGED_BY, EncoderKind, History, Metric, StageName, Task


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("dta", "data"),
        ("sed", "seed"),
        ("data.histroy", "history"),
        ("data.split.trian", "train"),
        ("data.columns.itme", "item"),
        ("stages.tune_loar", "tune_lora"),
        ("stages.tune_hybrid.batchsize", "batch"),
        ("stages.pretrain_encoder.epoch", "epochs"),
        ("engine.zero", "zero_stage"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(key: str, near: str) -> None:
    assert f"unknown key {key!r}; did you mean {near!r}?" in refused(f"{key}=1")


def test_an_unknown_key_like_no_other_lists_the_known() -> None:
    message = refused("mapper.zzzzzz=1")
    assert "unknown key 'mapper.zzzzzz'; known keys: expansion, tokens" in message


def test_every_mistake_is_told_at_once() -> None:
    message = refused("dta=1", "engine.zero_stage=7", "seed=-1")
    assert all(part in message for part in ("'dta'", "engine.zero_stage", "seed"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("cluster.workers=two", "cluster.workers: Input should be a valid integer"),
        ("cluster.workers={min: 3, max: 2}", "cluster.workers: min 3 is more than max 2"),
        ("cluster.workers={min: 1}", "cluster.workers.max: missing"),
        ("cluster.workers={min: 1, max: 2, mex: 1}", "unknown key 'cluster.workers.mex'; did you mean 'max'?"),
        ("cluster.workers=0", "cluster.workers: Input should be greater than 0, got 0"),
        ("encoder.dropout=1", "encoder.dropout: Input should be less than 1, got 1"),
        ("stages.tune_lora.lr=0", "stages.tune_lora.lr: Input should be greater than 0"),
        ("stages.tune_lora.lr=.nan", "stages.tune_lora.lr: Input should be greater than 0"),
        ("stages.tune_hybrid.part_lr.mapper=-1", "stages.tune_hybrid.part_lr.mapper: Input should be greater than 0"),
        (
            "data.dataset=ml-2m",
            "data.dataset: Input should be 'ml-100k', 'ml-1m', 'table', 'collm', 'amazon-books', 'amazon-beauty'",
        ),
        ("engine.zero_stage=4", "engine.zero_stage: Input should be 0, 1, 2 or 3"),
        ("encoder.max_len=long", "encoder.max_len"),
        ("data=3", "data: Input should be a valid dictionary"),
        ("name=a b", "name: String should match pattern"),
        ("name=../up", "name: String should match pattern"),
        ("data.split.train=0.95", "train 0.95 + valid 0.1 leaves no test set"),
        ("data.threshold=9", "threshold 9.0 must lie inside rating_range (0.0, 5.0]"),
        ("data.dataset=table", "dataset 'table' needs data.sources"),
        ("encoder.heads=5", "encoder: width 64 is not divisible by heads 5"),
        ("encoder={kind: bert4rec, heads: 5}", "encoder: width 64 is not divisible by heads 5"),
        ("encoder.mask=0.3", "encoder: sasrec does not read mask; leave it out, or at its default, 0.2"),
        ("encoder={kind: bert4rec, mask: 1}", "encoder.mask: Input should be less than 1, got 1"),
        (
            "encoder={kind: bert4rec, history: rated}",
            "encoder: bert4rec does not read history; leave it out, or at its default, liked",
        ),
        (
            "stages.pretrain_encoder.negatives=8",
            "stages.pretrain_encoder: label_bce does not read negatives; leave it out, or at its default, 256",
        ),
        (
            "stages.pretrain_encoder={loss: sampled_softmax, calibration: 0.5}",
            "stages.pretrain_encoder: sampled_softmax does not read calibration; leave it out, or at its default, 0.75",
        ),
        (
            "stages.pretrain_encoder={loss: gbce, calibration: 1.5}",
            "stages.pretrain_encoder.calibration: Input should be less than or equal to 1, got 1.5",
        ),
        ("stages.tune_lora.negatives=8", "unknown key 'stages.tune_lora.negatives'"),
        ("encoder.kind=lstm", "encoder.kind: Input should be 'sasrec', 'mf', 'neumf', 'gru' or 'bert4rec', got"),
        ("encoder={kind: mf, heads: 2}", "encoder: mf does not read heads; leave it out, or at its default, 4"),
        ("encoder={kind: mf, dropout: 0}", "encoder: mf does not read dropout; leave it out, or at its default, 0.2"),
        ("encoder={kind: gru, blocks: 1}", "encoder: gru does not read blocks; leave it out, or at its default, 2"),
        (
            "encoder={kind: mf, history: rated}",
            "encoder: mf does not read history; leave it out, or at its default, liked",
        ),
        ("encoder.history=all", "encoder.history: Input should be 'liked' or 'rated', got 'all'"),
        ("mapper.offset=bias_floor", "mapper.offset: Input should be 'feature_floor', got 'bias_floor'"),
        ("encoder={kind: neumf, width: 20}", "encoder: width 20 is not divisible by 8: neumf halves it three times"),
        ("engine.precision=fp16", "fp16 needs a GPU; use bf16 or fp32"),
        ("engine.offload=optimizer", "engine.offload: optimizer needs a GPU; leave it out"),
        ("engine.offload=all", "engine: offload: all needs ZeRO-3, found zero_stage 2; use offload: optimizer"),
        ("engine={zero_stage: 0, offload: optimizer}", "offload: optimizer needs ZeRO; set zero_stage to 1, 2 or 3"),
        ("backbone.quantised=nf4", "backbone.quantised: nf4 needs a GPU; leave it out"),
        ("stages.tune_lora.loss=next_item", "tune_lora.loss: next_item is not offered; choose label_bce"),
        ("stages.tune_lora.part_lr.encoder=1", "tune_lora does not train encoder; it trains lora"),
        ("stages.tune_hybrid.part_lr.lora=1", "tune_hybrid does not train lora; it trains encoder, mapper"),
        ("stages.tune_lora.part_lr.lorra=1", "stages.tune_lora.part_lr.lorra: Input should be 'encoder', 'mapper' or"),
        ("stages.pretrain_encoder.trains=[lora]", "pretrain_encoder does not train lora"),
        ("stages.tune_lora.starts_from.encoder=/p", "tune_lora has no encoder; it has lora"),
        ("stages.tune_lora.starts_from.lora=fresh", "starts_from.lora: tune_lora inherits no lora, it is fresh anyway"),
        ("stages.tune_lora.starts_from.lora=none", "starts_from.lora: none, but tune_lora cannot go without lora"),
        ("stages.tune_hybrid.starts_from.mapper=fresh", "tune_hybrid inherits no mapper, it is fresh anyway"),
        ("stages.tune_hybrid.starts_from.encoder=none", "none, but tune_hybrid cannot go without encoder"),
        ("stages.tune_hybrid.starts_from.lora=null", "starts_from.lora: Input should be a valid string"),
        (
            "stages.tune_hybrid.starts_from.lora=fresh",
            "tune_hybrid.trains: lora would be drawn and never learn; add it, or write a folder or none in"
            " tune_hybrid.starts_from.lora",
        ),
        (
            "stages.tune_hybrid={trains: [mapper], starts_from: {encoder: fresh}}",
            "tune_hybrid.trains: encoder would be drawn and never learn; add it, or write a folder in",
        ),
        ("stages.tune_hybrid.trains=[encoder]", "tune_hybrid.trains: mapper would be drawn and never learn"),
        (
            "stages.tune_hybrid={trains: [encoder, mapper, lora], starts_from: {lora: none}}",
            "starts_from.lora: none, but tune_hybrid.trains names lora; write fresh, or take it out there",
        ),
    ],
)
def test_a_wrong_value_is_named(assignment: str, message: str) -> None:
    assert message in refused(assignment)


@pytest.mark.parametrize("kind", ["mf", "neumf"])
def test_an_encoder_without_a_sequence_has_no_next_item(kind: str) -> None:
    assert f"next_item needs an encoder that reads a sequence forwards, and {kind} does not; use label_bce" in refused(
        f"encoder.kind={kind}", "stages.pretrain_encoder.loss=next_item"
    )


@pytest.mark.parametrize("loss", ["next_item", "softmax", "sampled_softmax", "gbce"])
def test_who_sees_what_follows_cannot_be_asked_for_it(loss: str) -> None:
    needs = "needs an encoder that reads a sequence forwards, and bert4rec does not; use label_bce or cloze"
    assert f"stages.pretrain_encoder.loss: {loss} {needs}" in refused(
        "encoder.kind=bert4rec", f"stages.pretrain_encoder.loss={loss}"
    )


@pytest.mark.parametrize("kind", [kind for kind in EncoderKind if kind is not EncoderKind.BERT4REC])
def test_only_who_sees_both_ways_fills_gaps(kind: EncoderKind) -> None:
    assert f"cloze needs an encoder that reads a sequence both ways, and {kind} does not; use label_bce" in refused(
        f"encoder.kind={kind}", "stages.pretrain_encoder.loss=cloze"
    )


@pytest.mark.parametrize("path", OF_CLICKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", EncoderKind)
def test_the_kind_alone_may_change(kind: EncoderKind, path: Path) -> None:
    """On top of a file, and of a whole configuration, as a search does; where all that the file sets is read."""
    if load(path).encoder.history is History.RATED and "history" not in ENCODERS[kind].reads:
        assert f"encoder: {kind} does not read history" in refused(f"encoder.kind={kind}", "encoder.history=rated")
        return
    assert load(path, [f"encoder.kind={kind}"]).encoder.kind is kind
    tree = load(path).model_dump(mode="json")
    assert validate(with_values(tree, {"encoder.kind": kind.value}), "x").encoder.kind is kind


def test_a_batch_that_does_not_divide_says_what_would() -> None:
    message = refused("stages.tune_lora.batch=21")
    assert "stages.tune_lora.batch 21 is not divisible by 2 workers; use a multiple of 2" in message
    assert "batch 1024 is not divisible by 3 workers; use a multiple of 3" in refused("cluster.workers=3")


@pytest.mark.parametrize("other", ["engine.zero_stage=3", "engine.gradient_checkpointing=true"])
def test_what_torch_compile_does_not_go_with(other: str) -> None:
    assert "fast.compile: not with engine.zero_stage 3 or" in refused("fast.compile=true", other)


@pytest.mark.parametrize("task", list(Task))
def test_a_stage_is_judged_by_what_its_task_knows(task: Task) -> None:
    own = JUDGED_BY[task][0]
    settings: dict[str, Any] = {"data": {"task": task.value}}
    if task is Task.NEXT_ITEM:
        settings["stages"] = {"pretrain_encoder": {"loss": "softmax"}}
    assert Config.model_validate(settings).judged_by(StageName.PRETRAIN_ENCODER) is own


def test_checkpoints_may_be_chosen_by_users_too() -> None:
    chosen = Config.model_validate({"stages": {"tune_hybrid": {"judged_by": "valid_auc_uauc"}}})
    assert chosen.judged_by(StageName.TUNE_HYBRID) is Metric.AUC_AND_UAUC
    assert chosen.judged_by(StageName.TUNE_LORA) is Metric.AUC
    assert identity(chosen) != identity(Config()) and "judged_by" not in str(identity(Config()))


@pytest.mark.parametrize("metric", ["valid_log_loss", "valid_ndcg"])
def test_what_cannot_choose_checkpoints_is_refused(metric: str) -> None:
    assert f"{metric} does not choose checkpoints for data.task click; write valid_auc or valid_uauc or" in refused(
        f"stages.tune_hybrid.judged_by={metric}"
    )
