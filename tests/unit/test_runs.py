"""A run: its name stands for one configuration, and a system is scored with the parts that it was trained with."""

import json
from pathlib import Path
from typing import Any

import pytest
from remains import everything

from rayrec import storage
from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.evaluation import clicks, scoring
from rayrec.pipeline import _check_parents
from rayrec.run import Run
from rayrec.stages import StageName
from rayrec.systems import SYSTEMS, SystemName


def run(folder: Path, **changes: Any) -> Run:
    return Run(Config.model_validate({"name": "r", "storage": str(folder), **changes}))


def test_a_name_stands_for_one_configuration(tmp_path: Path) -> None:
    first = run(tmp_path)
    first.bind()
    storage.write_text(first.path("data", "manifest.json"), "{}")
    held = storage.read_text(first.path("config.yaml"))
    run(tmp_path, cluster={"workers": 4}).bind()  # how to run may change
    with pytest.raises(InputError) as caught:
        run(tmp_path, seed=1, encoder={"width": 32}).bind()
    message = str(caught.value)
    assert "the name 'r' already holds another configuration" in message
    assert "encoder.width: 64 -> 32; seed: 0 -> 1" in message and "choose another name or delete" in message
    assert storage.read_text(first.path("config.yaml")) == held


def test_what_a_killed_job_left_is_swept_by_its_name_alone(tmp_path: Path) -> None:
    first = run(tmp_path)
    first.bind()
    storage.write_text(first.path("data", "manifest.json"), "{}")
    left = Path(first.path("report", "metrics.json.1234abcd.partial"))
    left.parent.mkdir()
    left.write_text("{")
    with pytest.raises(InputError):
        run(tmp_path, seed=1).bind()
    assert left.exists()
    run(tmp_path).bind()
    assert everything(Path(first.folder)) == {"config.yaml", "data/manifest.json"}


def test_a_mistake_mended_before_there_is_data_needs_no_other_name(tmp_path: Path) -> None:
    run(tmp_path, data={"dataset": "table", "sources": ["typo.csv"]}).bind()
    mended = run(tmp_path, data={"dataset": "table", "sources": ["right.csv"]})
    mended.bind()
    assert "right.csv" in storage.read_text(mended.path("config.yaml"))


def test_nothing_is_prepared_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data/manifest\.json: the data is not prepared yet; run jobs/prepare\.py"):
        _ = run(tmp_path).manifest


@pytest.mark.parametrize(
    ("encoder", "mapper", "told"),
    [
        ({}, {}, []),
        ({"kind": "gru", "offset": "feature_floor"}, {}, ["GRU start from those of the feature floor"]),
        ({}, {"offset": "feature_floor"}, ["SASRecLLM start from those of the feature floor"]),
        (
            {"offset": "feature_floor"},
            {"offset": "feature_floor"},
            ["SASRec and SASRecLLM start from those of the feature floor"],
        ),
        ({"kind": "gru"}, {"offset": "encoder"}, ["GRULLM start from those of GRU"]),
        (
            {"offset": "feature_floor"},
            {"offset": "encoder"},
            ["SASRec start from those of the feature floor", "SASRecLLM start from those of SASRec"],
        ),
    ],
)
def test_a_report_says_what_scores_start_from(
    encoder: dict[str, Any], mapper: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    notes = clicks._notes(run(tmp_path, encoder=encoder, mapper=mapper))
    found = [note for note in notes if note.startswith("Scores of")]
    assert found == [f"Scores of {each}, and learn how much to add." for each in told]


def test_a_report_says_what_a_mapper_reads(tmp_path: Path) -> None:
    told = "The item's soft tokens tell GRULLM the feature floor's features, too."
    of = run(tmp_path / "of", encoder={"kind": "gru"}, mapper={"features": "feature_floor"})
    assert told in clicks._notes(of)
    assert told not in clicks._notes(run(tmp_path / "plain", encoder={"kind": "gru"}))


def test_a_report_says_who_answers_by_a_mean(tmp_path: Path) -> None:
    told = "GRU is 3 encoders that learned each for itself; its score is the mean of theirs."
    assert told in clicks._notes(run(tmp_path / "of", encoder={"kind": "gru", "members": 3}))
    assert not any("learned each" in note for note in clicks._notes(run(tmp_path / "plain", encoder={"kind": "gru"})))


def prepared(of: Run) -> None:
    """As if its data were prepared."""
    counts = {split: {"rows": 9} for split in ("train", "valid", "test")}
    manifest = {
        "users": 2,
        "items": 3,
        "mean_liked_per_training_user": 2.4,
        "splits": counts,
        "files": {"train.parquet": "a1"},
    }
    storage.write_text(of.path("data", "manifest.json"), json.dumps(manifest))
    storage.write_text(of.path("data", "prompts", "prompts.json"), json.dumps({"files": {"train.parquet": "b2"}}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"encoder": "tune_hybrid/encoder", "mapper": "tune_hybrid/mapper", "lora": "tune_lora/lora"}),
        (
            {"trains": ["mapper"]},
            {"encoder": "pretrain_encoder/encoder", "mapper": "tune_hybrid/mapper", "lora": "tune_lora/lora"},
        ),
        (
            {"starts_from": {"lora": "OTHER/lora", "encoder": "OTHER/encoder"}},
            {"encoder": "tune_hybrid/encoder", "mapper": "tune_hybrid/mapper", "lora": "OTHER/lora"},
        ),
        (
            {"starts_from": {"lora": "none"}},
            {"encoder": "tune_hybrid/encoder", "mapper": "tune_hybrid/mapper"},
        ),
        (
            {"trains": ["encoder", "mapper", "lora"]},
            {part: f"tune_hybrid/{part}" for part in ("encoder", "mapper", "lora")},
        ),
        (
            {"trains": ["encoder", "mapper", "lora"], "starts_from": {"encoder": "fresh", "lora": "fresh"}},
            {part: f"tune_hybrid/{part}" for part in ("encoder", "mapper", "lora")},
        ),
    ],
    ids=["all", "mapper only", "from elsewhere", "without lora", "lora goes on", "joint"],
)
def test_a_system_is_scored_with_the_parts_it_was_trained_with(
    changes: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    other = f"{tmp_path}/other"
    elsewhere = {part: folder.replace("OTHER", other) for part, folder in changes.get("starts_from", {}).items()}
    of = run(tmp_path, stages={"tune_hybrid": changes | {"starts_from": elsewhere}})
    prepared(of)
    trained = [f"tune_hybrid/{part}" for part in changes.get("trains", ["encoder", "mapper"])]
    for part in (*trained, "pretrain_encoder/encoder", "tune_lora/lora"):
        storage.write_text(of.path("parts", part, "part.json"), json.dumps({"sha256": part}))
    for folder in (start for start in elsewhere.values() if start.startswith(other)):
        storage.write_text(f"{folder}/part.json", json.dumps({"sha256": folder}))
    job = scoring.scoring_job(of, SYSTEMS[SystemName.SASRECLLM])
    places = {part.value: folder.replace(other, "OTHER") for part, folder in job.parts.items()}
    found = {part: place.removeprefix(of.path("parts") + "/") for part, place in places.items()}
    assert found == expected
    assert (job.facts.items, job.facts.max_len) == (3, 2)


JOINT = {"trains": ["encoder", "mapper", "lora"], "starts_from": {"encoder": "fresh", "lora": "fresh"}}
FOLDERS = {"encoder": "/p", "lora": "/q"}


@pytest.mark.parametrize(
    ("hybrid", "stages", "systems"),
    [
        ({}, ["pretrain_encoder", "tune_lora"], ["icl", "tallrec", "sasrec"]),
        ({"trains": ["mapper"]}, ["pretrain_encoder", "tune_lora"], ["icl", "tallrec", "sasrec"]),
        ({"starts_from": {"lora": "none"}}, ["pretrain_encoder"], ["icl", "sasrec"]),
        ({"starts_from": {"encoder": "fresh"}}, ["tune_lora"], ["icl", "tallrec"]),
        (JOINT, [], ["icl"]),
        ({"starts_from": FOLDERS}, ["pretrain_encoder", "tune_lora"], ["icl", "tallrec", "sasrec"]),
    ],
    ids=["plain", "mapper only", "without lora", "from scratch", "joint", "folders"],
)
def test_a_run_trains_and_scores_what_is_needed(
    hybrid: dict[str, Any], stages: list[str], systems: list[str], tmp_path: Path
) -> None:
    of = run(tmp_path, stages={"tune_hybrid": hybrid})
    assert [*of.stages] == [*stages, "tune_hybrid"]
    assert [*of.systems] == ["always_yes", "always_no", "bias_floor", "markov", "feature_floor", *systems, "sasrecllm"]


def test_a_stage_alone_asks_for_what_it_inherits(tmp_path: Path) -> None:
    of = run(tmp_path, stages={"tune_hybrid": {"starts_from": {"encoder": "fresh"}}})
    with pytest.raises(
        InputError, match=r"parts/tune_lora/lora: no trained lora here; run jobs/train_stage\.py tune_l"
    ):
        _check_parents(of, StageName.TUNE_HYBRID)
    _check_parents(run(tmp_path, stages={"tune_hybrid": JOINT}), StageName.TUNE_HYBRID)  # nothing
