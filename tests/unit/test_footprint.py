"""Memory from a configuration alone, against published sizes, real tensors and arithmetic by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayrec.batch import Batch, Prompt
from rayrec.config import Config
from rayrec.config.data import DATASET_SIZES
from rayrec.models.bert4rec import BERT4Rec
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import ModelShape, build
from rayrec.settings import load
from rayrec.stages import StageName
from rayrec.training.footprint import TOKENS, footprint
from rayrec.training.job import DataFacts, StageJob

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "configs" / "models"
# Parameters as counted from the weights themselves: https://huggingface.co/ORG/MODEL, "Model size".
PUBLISHED = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-1.5b": 1_543_714_304,
}
LORA, HYBRID, ENCODER = StageName.TUNE_LORA, StageName.TUNE_HYBRID, StageName.PRETRAIN_ENCODER


def facts(items: int, max_len: int = 12) -> DataFacts:
    return DataFacts(users=30, items=items, max_len=max_len, rows={"train": 1})


def job(stage: StageName, changes: dict[str, Any], items: int = 100) -> StageJob:
    config = Config.model_validate({"cluster": {"workers": 4, "gpus_per_worker": 1}} | changes)
    return StageJob(config=config, stage=stage, facts=facts(items), data="")


def shape(backbone: Path, items: int = 100, *, empty: bool = True) -> ModelShape:
    return ModelShape(users=30, items=items, max_len=12, backbone=backbone, answers=(1, 2), empty=empty)


def test_every_shape_is_tested() -> None:
    assert PUBLISHED.keys() == {path.stem for path in SHAPES.glob("*.json")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_those_of_the_published_weights(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHAPES / f"{name}.json"))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_lora_of_an_8b_model_is_counted_exactly() -> None:
    """q_proj: 4096 -> 4096, v_proj: 4096 -> 1024, in each of 32 layers, with r = 8."""
    need = footprint(job(LORA, {"engine": {"precision": "fp16"}}), shape(SHAPES / "llama-3.1-8b.json"))
    assert need.trainable == 32 * 8 * (4096 + 4096 + 4096 + 1024)
    without_head = PUBLISHED["llama-3.1-8b"] - 128_256 * 4096
    assert need.weights == 2 * (without_head + need.trainable)


JOINT = {"trains": ["encoder", "mapper", "lora"], "starts_from": {"encoder": "fresh", "lora": "fresh"}}
VARIANTS: dict[str, dict[str, Any]] = {"": {}, "without lora": {"starts_from": {"lora": "none"}}, "joint": JOINT}


@pytest.mark.parametrize(("stage", "variant"), [(LORA, ""), *((HYBRID, variant) for variant in VARIANTS)], ids=str)
@pytest.mark.parametrize("gpus", [0, 1])
def test_activations_are_what_a_real_pass_keeps(gpus: int, stage: StageName, variant: str, tiny: Path) -> None:
    """A CPU's own pass; a GPU's attention keeps what the CPU's fused kernel keeps."""
    changes: dict[str, Any] = {"lora": {"dropout": 0.0}, "encoder": {"dropout": 0.0}, "engine": {"precision": "fp32"}}
    changes |= {"cluster": {"workers": 4, "gpus_per_worker": gpus}, "fast": {"plain_attention": not gpus}}
    changes |= {"stages": {"tune_hybrid": VARIANTS[variant]}}
    work = job(stage, changes)
    torch.manual_seed(0)
    model = build(work.config, shape(tiny, empty=False), parts=work.parts, with_backbone=True)
    model.freeze_all_but(work.trains)
    model.set_mode(work.trains)
    rows = work.micro_batch
    soft = torch.tensor([[[3], [9]]] * rows) if stage is HYBRID else None
    prompt = Prompt(torch.ones(rows, TOKENS, dtype=torch.long), torch.full((rows,), TOKENS), soft)
    one_B = torch.ones(rows, dtype=torch.long)
    batch = Batch(one_B, torch.ones(rows, 12, dtype=torch.long), one_B, torch.ones(rows), prompt)
    kept: dict[int, Tensor] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Objective(model, work.settings.loss)(batch).backward()
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    expected = sum(sizes) + 2 * max(sizes)
    assert footprint(work, shape(tiny)).activations == pytest.approx(expected, rel=0.05)


def test_variants_by_hand(tiny: Path) -> None:
    """The tiny LLaMA: two layers, q_proj 64 -> 64, v_proj 64 -> 32, and r = 8."""
    lora = 2 * 8 * (64 + 64 + 64 + 32)
    plain, without, joint = (
        footprint(job(HYBRID, {"stages": {"tune_hybrid": v}}), shape(tiny)) for v in VARIANTS.values()
    )
    assert (without.trainable, joint.trainable) == (plain.trainable, plain.trainable + lora)
    width = 2  # bytes, of bf16
    assert plain.weights - without.weights == width * lora and joint.weights == plain.weights


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("next_item", "sasrec"),
        ("softmax", "sasrec"),
        ("sampled_softmax", "sasrec"),
        ("gbce", "gru"),
        ("cloze", "bert4rec"),
    ],
)
def test_losses_at_every_position_are_counted(
    loss: str, kind: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many positions there are is content, which tensors of mere shape have not: all of them, then."""
    changes = {"encoder": {"kind": kind, "dropout": 0.0}, "stages": {"pretrain_encoder": {"loss": loss, "batch": 64}}}
    work = job(ENCODER, changes)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    model = build(work.config, shape(tiny, empty=False), parts=work.parts, with_backbone=False)
    model.set_mode(work.trains)
    rows, weights = work.micro_batch, {p.untyped_storage().data_ptr() for p in model.parameters()}
    one_B, history_BL = torch.ones(rows, dtype=torch.long), torch.ones(rows, 12, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), monkeypatch.context() as patch:
        patch.setattr(BERT4Rec, "hidden", lambda self, known_BM: known_BM)
        objective = Objective(model, work.settings.loss, work.settings.of_loss)
        objective(Batch(one_B, history_BL, one_B, torch.ones(rows), None)).backward()
    sizes = [size for place, size in kept.items() if place not in weights]
    assert footprint(work, shape(tiny)).activations == pytest.approx(sum(sizes) + 2 * max(sizes), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "trainable"),
    [
        ("mf", 31 * (16 + 1) + 101 * (16 + 1) + 1),
        ("neumf", (31 + 101) * 16 + (16 * 8 + 8) + (8 * 4 + 4) + (4 * 2 + 2) + (8 + 2 + 1)),
        ("gru", 101 * 16 + 2 * 3 * (16 * 16 + 16)),
        ("bert4rec", (102 + 13) * 16 + 2 * (2 * 32 + 6 * (16 * 16 + 16)) + 32),
    ],
)
def test_other_encoders_by_hand(kind: str, trainable: int, tiny: Path) -> None:
    """30 users, 100 items; alone they train in fp32, and ZeRO adds a copy."""
    for stage in (ENCODER, HYBRID):
        need = footprint(job(stage, {"encoder": {"kind": kind, "width": 16}}), shape(tiny))
        mapper = 0 if stage is ENCODER else 16 * 160 + 160 + 160 * 64 + 64
        assert need.trainable == trainable + mapper
    assert need.activations > 0


def test_what_is_sharded_quantised_and_offloaded(tiny: Path) -> None:
    def need(stage: StageName = LORA, **changes: Any) -> Any:
        return footprint(job(stage, {"engine": {"precision": "fp16", "zero_stage": 0}} | changes), shape(tiny))

    plain = need()
    trained, total = plain.trainable, plain.weights / 2
    assert plain.optimizer == 12 * trained  # an fp32 copy and two moments
    two = need(engine={"precision": "fp16", "zero_stage": 2})
    assert two.optimizer == 3 * trained and two.weights == plain.weights
    three = need(engine={"precision": "fp16", "zero_stage": 3})
    assert three.weights == total * 2 / 4 and three.buffers > two.buffers
    off = need(engine={"precision": "fp16", "zero_stage": 3, "offload": "all"})
    assert (off.weights, off.optimizer, off.host) == (0, 0, three.weights + three.optimizer)
    part = need(engine={"precision": "fp16", "zero_stage": 1, "offload": "optimizer"})
    assert part.weights == plain.weights and part.host == 3 * trained
    four = need(backbone={"quantised": "nf4"})
    linear = sum(
        m.weight.numel()
        for n, m in build(
            job(LORA, {"engine": {"precision": "fp32"}}).config, shape(tiny), parts=(), with_backbone=True
        ).named_modules()
        if isinstance(m, nn.Linear)
    )
    assert plain.weights - four.weights == pytest.approx(linear * (2 - 0.5159), rel=1e-3)
    again = need(engine={"precision": "fp16", "zero_stage": 0, "gradient_checkpointing": True})
    assert again.activations < 0.7 * plain.activations and need(ENCODER).weights < 1e6


TABLE = re.findall(
    r"^\| `configs/(\S+)\.yaml` \| .*? \| (\d+) x .*? \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$",
    (ROOT / "README.md").read_text(),
    re.MULTILINE,
)


def test_the_table_holds_every_configuration_of_a_card() -> None:
    carded = {path for path in (ROOT / "configs").rglob("*.yaml") if "card_gb" in path.read_text()}
    assert carded == {ROOT / "configs" / f"{name}.yaml" for name, *_ in TABLE}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_readme_says_what_the_plan_says(row: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    name, workers, micro, lora, hybrid = row
    monkeypatch.chdir(ROOT)
    config = load(ROOT / "configs" / f"{name}.yaml")
    assert config.backbone.plan_from is not None and config.cluster.card_gb is not None
    known = facts(DATASET_SIZES["ml-1m"][1], max_len=50)
    model = ModelShape(
        users=30, items=known.items, max_len=50, backbone=Path(config.backbone.plan_from), answers=(0, 1), empty=True
    )
    for stage, told in ((LORA, lora), (HYBRID, hybrid)):
        work = StageJob(config=config, stage=stage, facts=known, data="")
        found = footprint(work, model).device / 1e9
        assert f"{found:.1f}" == told and found < 0.95 * config.cluster.card_gb
        assert (work.micro_batch, config.cluster.workers) == (int(micro), int(workers))
