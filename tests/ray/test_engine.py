"""The engine on two gloo processes: against a plain loop, against itself on one, and interrupted.

The processes run all cases one after the other, since importing takes longer than training here.
"""

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from rayrec.batch import Batch, Prompt
from rayrec.config import Config
from rayrec.config.training import TuneLoraConfig
from rayrec.models.checkpoints import quiet_transformers
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.models.tiny import write_tiny_llama
from rayrec.stages import Loss, Part
from rayrec.training.engine import Engine, learning_rate, parameter_groups

STEPS, CUT, ROWS, MICRO = 20, 10, 8, 2
CLIPPING = 0.05  # so small that every step of the plain loop is clipped
ITEMS, MAX_LEN, WIDTH = 21, 7, 5  # width 5: biases, norms and the position table are of sizes that 2 does not divide
ZERO = (0, 1, 2, 3)
STAGE = TuneLoraConfig.model_validate(
    {"epochs": 1, "lr": 1e-3, "part_lr": {"encoder": 3e-4}, "weight_decay": 0.01, "warmup": 0.2, "batch": ROWS}
)


@dataclass(frozen=True)
class Case:
    """One training run on the group; ``start`` names the case whose state after ``CUT`` steps it goes on from."""

    name: str
    zero: int
    precision: str = "fp32"
    trains: tuple[Part, ...] = tuple(Part)
    start: str | None = None
    steps: int = STEPS


def name(zero: int, precision: str, world: int, start: str = "") -> str:
    return f"{precision}-zero{zero}-workers{world}{start and '-from-' + start}"


def cases(world: int) -> list[Case]:
    """What the group of ``world`` processes runs; the group of two runs first, and the group of one after it."""
    found = [Case(name(z, "fp32", world), z) for z in ZERO]
    if world == 2:
        found += [Case(name(z, "bf16", 2), z, "bf16") for z in ZERO]
        for precision in ("fp32", "bf16"):
            for z in ZERO:  # to the same stage; to another one
                whole = name(z, precision, 2)
                found.append(Case(name(z, precision, 2, whole), z, precision, start=whole))
        for z in ZERO:
            whole, other = name(z, "fp32", 2), (z + 1) % 4
            found.append(Case(name(other, "fp32", 2, whole), other, start=whole))
        found += [
            Case("only-" + "-".join(parts), 2, trains=parts, steps=3)
            for parts in ((Part.ENCODER,), (Part.LORA,), (Part.MAPPER,), (Part.ENCODER, Part.MAPPER))
        ]
    else:
        for z in ZERO:  # to another number of workers, two of them to another stage besides
            whole, other = name(z, "fp32", 2), (0, 2, 1, 3)[z]
            found.append(Case(name(other, "fp32", 1, whole), other, start=whole))
    return found


# ---------------------------------------------------------------------------------- what both loops share: model, data


def config(zero: int, precision: str) -> Config:
    return Config.model_validate(
        {
            "engine": {"precision": precision, "zero_stage": zero, "gradient_clipping": CLIPPING},
            "encoder": {"width": WIDTH, "heads": 1, "dropout": 0.0},
            "lora": {"dropout": 0.0},
        }
    )


def model(folder: Path, zero: int = 0, precision: str = "fp32") -> SASRecLLM:
    """The same weights each time; LoRA's zero matrix is drawn too, so that both of them have a gradient."""
    torch.manual_seed(0)
    shape = ModelShape(items=ITEMS, max_len=MAX_LEN, backbone=folder / "llama", answers=(352, 351))
    built = build(config(zero, precision), shape, parts=set(Part), with_backbone=True)
    for parameter in built.parts()[Part.LORA].values():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.normal_(built.encoder.item.weight, std=1.0)  # type: ignore[union-attr]
    calibrate_mapper(built)
    return built


def batch(step: int) -> Batch:
    """A global batch: histories of different lengths, some empty, and prompts of different lengths."""
    draw = torch.Generator().manual_seed(step)
    shown_B = torch.randint(0, MAX_LEN + 1, (ROWS,), generator=draw)
    history_BL = torch.randint(1, ITEMS + 1, (ROWS, MAX_LEN), generator=draw)
    history_BL[torch.arange(MAX_LEN) < MAX_LEN - shown_B[:, None]] = 0
    return Batch(
        history_BL=history_BL,
        item_B=torch.randint(1, ITEMS + 1, (ROWS,), generator=draw),
        label_B=torch.randint(0, 2, (ROWS,), generator=draw).float(),
        prompt=Prompt(
            torch.randint(0, 300, (ROWS, 20), generator=draw),
            torch.randint(12, 21, (ROWS,), generator=draw),
            torch.tensor([[[5], [9]]] * ROWS),
        ),
    )


def rows(whole: Batch, index: Tensor) -> Batch:
    prompt = whole.prompt
    assert prompt is not None and prompt.soft_at_B2K is not None
    part = Prompt(prompt.tokens_BT[index], prompt.length_B[index], prompt.soft_at_B2K[index])
    return replace(
        whole, history_BL=whole.history_BL[index], item_B=whole.item_B[index], label_B=whole.label_B[index], prompt=part
    )


# ------------------------------------------------------------------------------------------------ the engine's process


def load(folder: Path, case: str) -> dict[str, Any]:
    """What ``run_group`` kept of a case: tensors, numbers and names."""
    kept: dict[str, Any] = torch.load(folder / f"{case}.pt", weights_only=True)
    return kept


def run_group(rank: int, world: int, folder: Path) -> None:
    """One process of a group: every case in turn; rank 0 keeps what each gave."""
    warnings.filterwarnings("ignore")
    quiet_transformers()
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    for case in cases(world):
        given = load(folder, case.start)["cut"] if case.start else None
        result = train(case, given, rank, world, folder)
        if rank == 0:
            torch.save(result, folder / f"{case.name}.pt")
        dist.barrier()
    dist.destroy_process_group()


def train(case: Case, given: dict[str, Tensor] | None, rank: int, world: int, folder: Path) -> dict[str, Any]:
    built = model(folder, case.zero, case.precision)
    if given is not None:
        with torch.no_grad():
            for key, parameter in trainable(built, case.trains).items():
                parameter.copy_(given[f"weights/{key}"])  # as the loop does: low precision rounds
    before = {key: value.clone() for key, value in (*built.named_parameters(), *built.named_buffers())}
    settings = config(case.zero, case.precision).engine
    engine = Engine(
        Objective(built, Loss.LABEL_BCE),
        trains=case.trains,
        engine=settings,
        precision=settings.precision,
        stage=STAGE,
        total_steps=STEPS,
        micro_batch=MICRO,
        accumulation=ROWS // (MICRO * world),
    )
    if given is not None:
        engine.restore(given, CUT)
    result: dict[str, Any] = {"losses": [], "norms": [], "rates": []}
    for step in range(CUT if given is not None else 0, case.steps):
        if step == CUT:
            result["cut"] = engine.state()
        mine = torch.arange(rank, ROWS, world)
        built.set_mode(case.trains)
        result["losses"].append(engine.step([rows(batch(step), part) for part in mine.split(MICRO)], step))
        result["norms"].append(engine.gradient_norm)
        result["rates"].append(engine.learning_rate)
    if case.zero != 3:  # there the weights are in pieces
        after = dict((*built.named_parameters(), *built.named_buffers()))
        result["changed"] = [key for key in before if not torch.equal(before[key], after[key])]
    return result | {"end": engine.state()}


# ----------------------------------------------------------------------------------------------- the slow, obvious way


def plain_loop(folder: Path) -> dict[str, Any]:
    """The same training in plain torch, whole batches at once."""
    built = model(folder)
    built.requires_grad_(False)
    parameters = dict(trainable(built, tuple(Part)))
    groups = []
    for key, parameter in parameters.items():
        parameter.requires_grad_(True)
        bare = "norm" in key or key.endswith("bias")
        peak = 3e-4 if key.startswith("encoder.") else 1e-3
        groups.append({"params": [parameter], "lr": 0.0, "peak": peak, "weight_decay": 0.0 if bare else 0.01})
    optimizer = torch.optim.AdamW(groups)
    losses, norms = [], []
    for step in range(STEPS):
        rise = 4  # 20 steps, a fifth of them warm-up
        share = (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / (STEPS - rise)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        loss = torch.nn.functional.binary_cross_entropy_with_logits(built(batch(step)), batch(step).label_B)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIPPING)))
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = {f"weights/{key}": parameter.detach().clone() for key, parameter in parameters.items()}
    return {"losses": losses, "norms": norms, "end": weights}


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case of both groups has left its result."""
    folder = tmp_path_factory.mktemp("engine")
    write_tiny_llama(folder / "llama")
    for world in (2, 1):
        mp.spawn(run_group, args=(world, folder), nprocs=world)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    return plain_loop(folder)


def furthest(a: dict[str, Tensor], b: dict[str, Tensor], keys: Iterable[str]) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in keys)


def test_the_plain_loop_is_clipped_and_learns(plain: dict[str, Any]) -> None:
    assert len(plain["norms"]) == STEPS and min(plain["norms"]) > 1.5 * CLIPPING
    assert any(tensor.numel() % 2 for tensor in plain["end"].values())


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_equals_a_plain_loop(zero: int, world: int, folder: Path, plain: dict[str, Any]) -> None:
    ours = load(folder, name(zero, "fp32", world))
    assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    if zero:  # without it, DeepSpeed clips and does not tell the norm
        assert ours["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    weights = [key for key in ours["end"] if key.startswith("weights/")]
    assert set(weights) == set(plain["end"])
    assert furthest(ours["end"], plain["end"], weights) < 1e-5


@pytest.mark.parametrize("zero", ZERO)
def test_one_worker_equals_two(zero: int, folder: Path) -> None:
    one, two = (load(folder, name(zero, "fp32", world)) for world in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", ZERO)
def test_goes_on_bit_for_bit(zero: int, precision: str, folder: Path) -> None:
    whole = name(zero, precision, 2)
    expected, ours = load(folder, whole), load(folder, name(zero, precision, 2, whole))
    for key in ("losses", "norms", "rates"):
        assert ours[key] == expected[key][CUT:]
    assert set(ours["end"]) == set(expected["end"])
    assert [key for key in ours["end"] if not torch.equal(ours["end"][key], expected["end"][key])] == []
    moved = [k for k in expected["end"] if not torch.equal(expected["end"][k], expected["cut"][k])]
    assert len(moved) == len(expected["end"])  # the second half does train


SAME = [name(zero, "fp32", 2, name(zero, "fp32", 2)) for zero in ZERO]
ELSEWHERE = [c for world in (1, 2) for c in cases(world) if c.start and c.precision == "fp32" and c.name not in SAME]


@pytest.mark.parametrize("case", ELSEWHERE, ids=lambda case: case.name)
def test_goes_on_elsewhere(case: Case, folder: Path) -> None:
    """Another ZeRO stage, another number of workers, both."""
    expected, ours = load(folder, case.start), load(folder, case.name)
    assert ours["losses"] == pytest.approx(expected["losses"][CUT:], abs=1e-5)
    assert furthest(ours["end"], expected["end"], expected["end"]) < 1e-5


@pytest.mark.parametrize(
    "case", [case for case in cases(2) if case.name.startswith("only-")], ids=lambda case: case.name
)
def test_only_what_a_stage_trains_changes(case: Case, folder: Path) -> None:
    ours = load(folder, case.name)
    built = model(folder)
    own = {id(p) for part in case.trains for p in built.parts()[part].values()}
    trained = {key for key, parameter in built.named_parameters() if id(parameter) in own}
    assert set(ours["changed"]) == trained  # the backbone's own weights and the other parts kept every bit


def test_learning_rate_by_hand() -> None:
    rates = [learning_rate(step, 10, 0.2, 8.0) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates == pytest.approx([4.0, 8.0, *(8.0 * c for c in cosine)])
    assert rates[2] == 8.0 and rates[6] == pytest.approx(4.0) and rates[-1] > 0
    assert learning_rate(0, 10, 0.0, 8.0) == 8.0  # no warm-up still has a first step at the peak
    assert learning_rate(0, 1, 0.05, 8.0) == 8.0


def test_the_engine_follows_the_schedule(folder: Path) -> None:
    ours = load(folder, name(2, "fp32", 2))
    assert ours["rates"] == [learning_rate(step, STEPS, 0.2, 1e-3) for step in range(STEPS)]


def test_parameter_groups(folder: Path) -> None:
    built = model(folder)
    parameters = trainable(built, tuple(Part))
    names = {id(parameter): key for key, parameter in parameters.items()}
    groups = parameter_groups(built, parameters, STAGE)
    found = {names[id(p)]: (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == set(parameters) and sum(len(group["params"]) for group in groups) == len(parameters)
    assert found["encoder.item.weight"] == found["encoder.blocks.0.qkv.weight"] == (3e-4, 0.01)
    assert found["encoder.norm.weight"] == found["encoder.norm.bias"] == (3e-4, 0.0)
    assert found["encoder.blocks.1.feed_norm.weight"] == found["encoder.blocks.0.qkv.bias"] == (3e-4, 0.0)
    assert found["mapper.expand.weight"] == (1e-3, 0.01) and found["mapper.project.bias"] == (1e-3, 0.0)
    assert {rate for key, rate in found.items() if key.startswith("lora.")} == {(1e-3, 0.01)}
    assert all(group["lr"] == 0.0 for group in groups)  # until the first step sets it
