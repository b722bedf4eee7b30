"""What only a GPU can show: every precision trains as fp32 does, in the memory that ``--plan`` says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayrec.models.checkpoints import local_backbone
from rayrec.models.sasrecllm import ModelShape
from rayrec.models.tiny import write_tiny_llama
from rayrec.run import Run
from rayrec.settings import load
from rayrec.stages import StageName
from rayrec.training.footprint import CUDA_CONTEXT, footprint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
STAGE = StageName.TUNE_LORA
STEPS = 100
SAME = 0.01  # of the mean loss of the last fifth
PLANNED = 0.10  # of the peak
ENGINES: dict[str, list[str]] = {
    "fp32": ["engine.precision=fp32"],
    "fp16": ["engine.precision=fp16"],
    "bf16": ["engine.precision=bf16"],
    "nf4": ["engine.precision=fp16", "backbone.quantised=nf4"],
    "offload": ["engine.precision=fp16", "engine.zero_stage=3", "engine.offload=all"],
}
BACKBONES = ("tinyllama-1.1b, random weights", "SmolLM2-135M")


@dataclass(frozen=True)
class Trained:
    """What a hundred steps of one engine showed."""

    losses: list[float]
    peak: float  # bytes
    planned: float


def write_tinyllama(folder: Path) -> None:
    """TinyLlama's shape with random weights and a tokenizer of a few hundred tokens."""
    write_tiny_llama(folder)
    config = AutoConfig.from_pretrained(processes.ROOT / "configs" / "models" / "tinyllama-1.1b.json")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)


@pytest.fixture(scope="module", params=BACKBONES)
def trained(
    request: pytest.FixtureRequest, job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Trained]:
    """Each engine over the same rows in the same order; one storage, so that the data is prepared once."""
    root = tmp_path_factory.mktemp("gpu")
    common = [f"storage={root}", "cluster.workers=1", "cluster.gpus_per_worker=1", "fast.split_prompts=false"]
    common += [
        f"stages.{STAGE}.{key}" for key in ("epochs=1", f"steps_per_epoch={STEPS}", "batch=16", "micro_batch=16")
    ]
    if request.param == BACKBONES[0]:
        write_tinyllama(root / "tinyllama")
        common.append(f"backbone.sources=[{root / 'tinyllama'}]")
    return {name: train([*common, *engine, f"name={name}"], job_env, root) for name, engine in ENGINES.items()}


def train(changes: list[str], env: dict[str, str], root: Path) -> Trained:
    options = [option for change in changes for option in ("--set", change)]
    for job in (["prepare"], ["train_stage", STAGE.value]):
        processes.run(processes.job(*job, *options), env, root / "log").checked()
    run = Run(load(None, changes))
    job = run.stage_jobs()[STAGE]
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in Path(run.path("stages", STAGE.value, "progress.jsonl")).read_text().splitlines()
    ]
    folder = local_backbone(run.config.backbone.sources)
    sizes = {"users": job.facts.users, "items": job.facts.items, "max_len": job.facts.max_len}
    shape = ModelShape(**sizes, backbone=folder, answers=(0, 1), empty=True)
    need = footprint(job, shape, tokens=int(job.rows("train").open().lengths.max()))
    peak = max(line["memory_gb"] for line in lines) * 1e9
    return Trained([line["loss"] for line in lines], peak, need.device - CUDA_CONTEXT)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "fp32"])
def test_losses_are_those_of_fp32(engine: str, trained: dict[str, Trained]) -> None:
    assert [len(found.losses) for found in trained.values()] == [STEPS] * len(ENGINES)
    last, expected = (sum(trained[name].losses[-STEPS // 5 :]) for name in (engine, "fp32"))
    assert last == pytest.approx(expected, rel=SAME)


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_as_planned(engine: str, trained: dict[str, Trained]) -> None:
    assert trained[engine].peak == pytest.approx(trained[engine].planned, rel=PLANNED)
