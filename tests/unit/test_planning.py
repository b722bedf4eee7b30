"""--plan: what it prints is exact where it says so, and it leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from rayrec import planning
from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.models.sasrecllm import ModelShape, build, trainable
from rayrec.settings import load
from rayrec.stages import STAGES
from rayrec.training.job import DataFacts, StageJob

SMOKE = Path(__file__).resolve().parents[2] / "configs" / "smoke.yaml"


def smoke(tmp_path: Path, *overrides: str) -> Config:
    return load(SMOKE, [f"storage={tmp_path}/runs", *overrides])


def test_trainable_parameters_steps_and_rows_are_those_of_the_real_stages(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources: tiny)
    config = smoke(tmp_path)
    planning.print_plan(config)
    printed = capsys.readouterr().out
    facts = DataFacts(items=80, max_len=12, rows={"train": 3200})
    shape = ModelShape(items=80, max_len=12, backbone=tiny, answers=(1, 2))
    for stage, spec in STAGES.items():
        job = StageJob(config=config, stage=stage, facts=facts, data="")
        torch.manual_seed(0)
        model = build(config, shape, parts=job.parts, with_backbone=spec.reads.uses_backbone)
        count = sum(parameter.numel() for parameter in trainable(model, job.trains).values())
        (line,) = [line for line in printed.splitlines() if line.startswith(stage.value)]
        assert f" {count:,} " in line
        assert f" {job.total_steps} " in line and f" {job.total_steps * job.settings.batch:,} " in line
    assert f"{tmp_path}/runs/smoke" in printed
    assert max(len(line) for line in printed.splitlines() if "output" not in line) <= 100


def test_nothing_is_left_behind(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources: tiny)
    planning.print_plan(smoke(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.workers=64", "cluster.workers: 64 workers"),
        ("backbone.sources=/no/such/model", "no such file"),
        ("storage=nosuch://bucket", "cannot be written"),
    ],
)
def test_what_would_fail_later_fails_now(override: str, message: str, tmp_path: Path) -> None:
    batch = ("stages.pretrain_encoder.batch=128", "stages.tune_lora.batch=256", "stages.tune_hybrid.batch=256")
    with pytest.raises(InputError, match=message):
        planning.print_plan(smoke(tmp_path, *batch, override))
