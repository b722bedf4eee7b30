"""The whole pipeline as a person runs it, and what it leaves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import processes
import pytest
import safetensors.torch
import torch
from clicks import STAGES
from conftest import EPOCHS, LONGER, SCORED, SMOKE, Pipeline
from pages import assert_needs_no_network
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from rayrec.run import Run
from rayrec.settings import load
from rayrec.stages import Part, StageName
from rayrec.systems import SYSTEMS, SystemName
from rayrec.training.model import stage_model

pytestmark = pytest.mark.timeout(900)
KEYS = {"step", "loss", "lr", "rows_per_s", "tokens_per_s", "seconds", "memory_gb", "padding", "wait_share"}
JOBS = ("prepare", "train_stage", "evaluate", "full_pipeline")


@pytest.fixture(scope="module")
def folder(uninterrupted: Pipeline) -> Path:
    uninterrupted.finished.checked()
    return uninterrupted.folder


def part(folder: Path, stage: str, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "parts" / stage / name / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are equal bit for bit."""
    assert set(a) == set(b)
    return [name for name in a if torch.equal(a[name], b[name])]


def progress(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stages" / stage / "progress.jsonl").read_text().splitlines()]


def test_it_ends_well_and_says_little(uninterrupted: Pipeline) -> None:
    finished = uninterrupted.finished.checked()
    assert 10 < len(finished.lines) <= 60
    assert max(map(len, finished.out.splitlines())) <= 200
    for stage in STAGES:
        assert re.search(rf"^{stage}  \d+ steps in \d+ s", finished.out, re.MULTILINE)
    for system in SCORED:
        assert re.search(rf"^{SYSTEMS[system].title} .*\d\.\d{{3}}", finished.out, re.MULTILINE)


def test_it_leaves_what_is_promised(folder: Path) -> None:
    wanted = [*(f"data/{name}" for name in ("train.parquet", "valid.parquet", "test.parquet", "items.parquet"))]
    wanted += ["config.yaml", "data/manifest.json", "metrics.json", "report/index.html"]
    wanted += [f"predictions/{system}.parquet" for system in SCORED]
    wanted += [f"stages/{stage}/progress.jsonl" for stage in STAGES]
    wanted += [
        f"parts/{stage}/{name}/{file}"
        for stage, spec in STAGES.items()
        for name in spec.trains
        for file in ("model.safetensors", "part.json")
    ]
    assert [path for path in wanted if not (folder / path).is_file()] == []
    assert list((folder / "report" / "figures").iterdir()) and list((folder / "report" / "tables").glob("*.csv"))
    assert [path for path in folder.rglob("*") if ".partial" in path.name or ".write-test" in path.name] == []
    assert {path.name for path in folder.parent.iterdir()} == {"smoke", "store", "log"}


def test_again_there_is_nothing_to_do(uninterrupted: Pipeline, folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    nowhere = uninterrupted.env | {"RAY_ADDRESS": "127.0.0.1:1"}  # where connecting would fail
    finished = processes.run(processes.job("full_pipeline", *uninterrupted.options), nowhere, tmp_path).checked()
    assert "all stages are complete; nothing to do" in finished.out
    table = len(SCORED) + 2  # its header, and where the report is
    assert finished.out.splitlines()[-table:] == uninterrupted.finished.out.splitlines()[-table:]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------ predictions, metrics


@pytest.fixture(scope="module")
def predictions(folder: Path) -> dict[SystemName, pd.DataFrame]:
    return {system: pd.read_parquet(folder / "predictions" / f"{system}.parquet") for system in SCORED}


def test_every_system_scores_the_same_rows(predictions: dict[SystemName, pd.DataFrame], folder: Path) -> None:
    frames = [frame.drop(columns="score") for frame in predictions.values()]
    assert all(frame.equals(frames[0]) for frame in frames[1:])
    there = pd.read_parquet(folder / "data" / "test.parquet")
    assert 0 < len(frames[0]) < len(there) and frames[0].user_id.nunique() == 40  # smoke.yaml asks for 40 users
    chosen = there[there.user_id.isin(frames[0].user_id)].reset_index(drop=True)
    assert chosen[frames[0].columns].equals(frames[0])  # all rows of these users, in the order of the file
    assert all(frame.score.between(0, 1).all() for frame in predictions.values())
    for system, frame in predictions.items():
        if system in {SystemName.YES, SystemName.NO}:
            assert frame.score.nunique() == 1
        else:
            assert frame.score.nunique() > len(frame) / 10


def slices(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield from (("all", frame), ("warm", frame[frame.is_warm]), ("cold", frame[~frame.is_warm]))
    yield "strict_cold", frame[frame.is_strict_cold]


def both_classes(frame: pd.DataFrame) -> bool:
    return frame.label.nunique() == 2


@pytest.mark.parametrize("system", SCORED)
def test_metrics_follow_from_the_predictions(
    system: SystemName, predictions: dict[SystemName, pd.DataFrame], folder: Path
) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())[system]
    for name, frame in slices(predictions[system]):
        found = {key: value["value"] for key, value in metrics[name]["metrics"].items()}
        assert metrics[name]["counts"]["rows"] == len(frame)
        if not len(frame):
            assert set(found.values()) == {None}
            continue
        assert found["log_loss"] == pytest.approx(log_loss(frame.label, frame.score, labels=[0, 1]), abs=1e-9)
        users = [rows for _, rows in frame.groupby("user_id") if both_classes(rows)]
        assert metrics[name]["counts"]["users_with_both_classes"] == len(users)
        if both_classes(frame):
            assert found["auc"] == pytest.approx(roc_auc_score(frame.label, frame.score), abs=1e-9)
        if users:
            own = [roc_auc_score(rows.label, rows.score) for rows in users]
            assert found["uauc"] == pytest.approx(sum(own) / len(own), abs=1e-9)


# --------------------------------------------------------------------------------------------------- parts and stages


def test_a_stage_leaves_the_parts_that_it_trains(folder: Path) -> None:
    for stage, spec in STAGES.items():
        assert {path.name for path in (folder / "parts" / stage).iterdir()} == {str(name) for name in spec.trains}
    first, second = part(folder, "pretrain_encoder", "encoder"), part(folder, "tune_hybrid", "encoder")
    kept = same(first, second)
    assert len(kept) < len(first) / 2, kept  # the hybrid stage went on training it
    card = json.loads((folder / "parts" / "tune_hybrid" / "mapper" / "part.json").read_text())
    for parent, stage in (("encoder", "pretrain_encoder"), ("lora", "tune_lora")):
        known = json.loads((folder / "parts" / stage / parent / "part.json").read_text())
        assert card["parents"][parent]["sha256"] == known["sha256"]


def test_a_stage_starts_from_what_was_handed_on(
    uninterrupted: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYREC_CACHE", uninterrupted.env["RAYREC_CACHE"])
    overrides = [*LONGER[1::2], f"storage={folder.parent}", "fast.merge_lora=false"]  # merged, it could not be seen
    job = Run(load(processes.ROOT / "configs" / "smoke.yaml", overrides)).stage_jobs()[StageName.TUNE_HYBRID]
    model = stage_model(job)
    for name, stage in ((Part.ENCODER, StageName.PRETRAIN_ENCODER), (Part.LORA, StageName.TUNE_LORA)):
        saved = part(folder, stage, name)
        loaded = {key: parameter.detach() for key, parameter in model.parts()[name].items()}
        assert same(saved, loaded) == list(saved)
    drawn = {key: parameter.detach() for key, parameter in model.parts()[Part.MAPPER].items()}
    trained = part(folder, "tune_hybrid", "mapper")
    assert same(drawn, trained) == []
    cache = Path(uninterrupted.env["RAYREC_CACHE"])
    backbone = safetensors.torch.load_file(cache / "backbones" / "tiny-llama" / "model.safetensors")
    assert model.backbone is not None
    frozen = {
        key.replace(".base_layer", ""): p for key, p in model.backbone.decoder.named_parameters() if ".lora_" not in key
    }
    assert frozen and all(torch.equal(p, backbone[f"model.{key}"]) for key, p in frozen.items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_small(stage: StageName, folder: Path) -> None:
    count = sum(tensor.numel() for name in STAGES[stage].trains for tensor in part(folder, stage, name).values())
    (checkpointed,) = (folder.parent / "store" / stage).iterdir()
    checkpoints = sorted((checkpointed / "checkpoints").iterdir())
    assert 1 <= len(checkpoints) <= 2  # the newest ones
    for checkpoint in checkpoints:
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        assert count * 12 < size <= count * 16 + 2**20


@pytest.mark.parametrize("stage", STAGES)
def test_progress_is_written_step_by_step(stage: StageName, folder: Path) -> None:
    lines = progress(folder, stage)
    settings = load(processes.ROOT / "configs" / "smoke.yaml").stages[stage]
    assert settings.steps_per_epoch is not None
    assert [line["step"] for line in lines] == list(range(1, EPOCHS[stage] * settings.steps_per_epoch + 1))
    assert [line["epoch"] for line in lines] == [i // settings.steps_per_epoch for i in range(len(lines))]
    assert [sorted(KEYS - set(line)) for line in lines if KEYS - set(line)] == []
    evaluated = [line["step"] for line in lines if "valid_auc" in line]
    assert evaluated == list(range(settings.steps_per_epoch, len(lines) + 1, settings.steps_per_epoch))
    assert all(line["loss"] > 0 and line["lr"] > 0 and line["rows_per_s"] > 0 for line in lines)
    for epoch in range(EPOCHS[stage]):
        filled = [line["tokens_per_s"] * line["seconds"] for line in lines if line["epoch"] == epoch]
        padding = [line["padding"] for line in lines if line["epoch"] == epoch]
        computed = sum(tokens / (1 - share) for tokens, share in zip(filled, padding, strict=True))
        assert 1 - sum(filled) / computed <= 0.10


# --------------------------------------------------------------------------------------------------- one part, one job


def mapper_alone(storage: Path) -> list[str]:
    options = ["tune_hybrid", "--config", "configs/smoke.yaml", "--set", f"storage={storage}"]
    options += ["--set", "stages.tune_hybrid.trains=[mapper]", "--set", "stages.tune_hybrid.epochs=1"]
    return processes.job("train_stage", *options)


def test_a_stage_alone_names_what_is_missing(uninterrupted: Pipeline, tmp_path: Path) -> None:
    refused = processes.run(mapper_alone(tmp_path), uninterrupted.env, tmp_path / "refused")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "parts/pretrain_encoder/encoder: no trained encoder" in refused.err
    assert "run jobs/train_stage.py pretrain_encoder first" in refused.err
    assert [path.name for path in (tmp_path / "smoke").iterdir()] == ["config.yaml"]  # refused at once


@pytest.mark.full
def test_one_stage_alone_and_one_part_of_it(uninterrupted: Pipeline, folder: Path, tmp_path: Path) -> None:
    """With the parts put there, it trains the mapper alone."""
    for stage in ("pretrain_encoder", "tune_lora"):
        for path in (folder / "parts" / stage).rglob("*.*"):
            copy = tmp_path / "smoke" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    processes.run(mapper_alone(tmp_path), uninterrupted.env, tmp_path / "trained").checked()
    assert [path.name for path in (tmp_path / "smoke" / "parts" / "tune_hybrid").iterdir()] == ["mapper"]
    mapper = part(tmp_path / "smoke", "tune_hybrid", "mapper")
    (state,) = tmp_path.glob("store/tune_hybrid/*/checkpoints/step-00000005/state.safetensors")
    size = state.stat().st_size
    assert size <= 16 * sum(tensor.numel() for tensor in mapper.values()) + 2**20


@pytest.mark.full
def test_stages_that_nothing_inherits_from_are_left_out(uninterrupted: Pipeline, tmp_path: Path) -> None:
    """All three parts in one step: neither the encoder nor LoRA has a stage, or a row, of its own."""
    options = ["--config", "configs/smoke.yaml", "--set", f"storage={tmp_path}"]
    for key, value in (
        ("trains", "[encoder, mapper, lora]"),
        ("starts_from", "{encoder: fresh, lora: fresh}"),
        ("epochs", "1"),
    ):
        options += ["--set", f"stages.tune_hybrid.{key}={value}"]
    command = processes.job("full_pipeline", *options)
    first = processes.run(command, uninterrupted.env, tmp_path / "log").checked()
    run = tmp_path / "smoke"
    assert "pretrain_encoder" not in first.out and "tune_lora" not in first.out and "TALLRec" not in first.out
    assert [path.name for path in (run / "parts").iterdir()] == ["tune_hybrid"]
    assert {path.name for path in (run / "parts" / "tune_hybrid").iterdir()} == {"encoder", "mapper", "lora"}
    systems = {"always_yes", "always_no", "bias_floor", "markov", "feature_floor", "icl", "sasrecllm"}
    assert {path.stem for path in (run / "predictions").iterdir()} == systems
    assert set(json.loads((run / "metrics.json").read_text())) == systems
    assert "tune_hybrid" in (run / "report" / "index.html").read_text()
    (state,) = tmp_path.glob("store/tune_hybrid/*/checkpoints/step-00000005/state.safetensors")
    names = [name.split("/")[1].partition(".")[0] for name in safetensors.torch.load_file(state)]
    assert set(names) == {"encoder", "mapper", "lora"}
    again = processes.run(command, uninterrupted.env, tmp_path / "again").checked()
    assert "all stages are complete; nothing to do" in again.out


@pytest.mark.full
def test_a_stage_goes_on_under_another_engine(uninterrupted: Pipeline, folder: Path, tmp_path: Path) -> None:
    """From two workers, ZeRO-2 and fp32 to one worker, ZeRO-0 and bf16, in the middle of a stage."""
    (given,) = (folder.parent / "store" / "tune_lora").iterdir()
    before = sorted((given / "checkpoints").iterdir())[0]
    assert before.name == "step-00000050"
    changes = [f"storage={tmp_path}", "engine.precision=bf16", "engine.zero_stage=0", "cluster.workers=1"]
    changes += [f"stages.tune_lora.resume_from={before}"]
    options = [*SMOKE, *(option for change in changes for option in ("--set", change))]
    processes.run(processes.job("prepare", *options), uninterrupted.env, tmp_path / "prepared").checked()
    command = processes.job("train_stage", "tune_lora", *options)
    processes.run(command, uninterrupted.env, tmp_path / "trained").checked()
    ours, theirs = progress(tmp_path / "smoke", "tune_lora"), progress(folder, "tune_lora")[50:]
    assert [(line["step"], line["row_mark"]) for line in ours] == [(line["step"], line["row_mark"]) for line in theirs]
    assert {line["workers"] for line in ours} == {1}
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=2e-2)
    assert [line["loss"] for line in ours] != [line["loss"] for line in theirs]


def test_a_name_stands_for_one_configuration(uninterrupted: Pipeline, folder: Path, tmp_path: Path) -> None:
    options = [*uninterrupted.options, "--set", "stages.tune_lora.lr=1e-2"]
    refused = processes.run(processes.job("full_pipeline", *options), uninterrupted.env, tmp_path)
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "stages.tune_lora.lr: 0.001 -> 0.01" in refused.err and "smoke" in refused.err


def test_the_report_needs_no_network(folder: Path) -> None:
    page = (folder / "report" / "index.html").read_text()
    assert "<title>" in page and "SASRecLLM" in page
    assert_needs_no_network(page)


@pytest.mark.parametrize("name", JOBS)
def test_help_fits_a_screen(name: str, job_env: dict[str, str], tmp_path: Path) -> None:
    lines = processes.run(processes.job(name, "--help"), job_env, tmp_path).checked().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert "--config" in "\n".join(lines) and "--set" in "\n".join(lines) and "--plan" in "\n".join(lines)
