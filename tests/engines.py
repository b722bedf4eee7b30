"""An engine on a group of processes, for tests: one model, one stream of batches, and runs that go on from others.

A group's processes run all its cases one after the other, since importing takes longer than training here.
"""

import os
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from rayrec.batch import FEATURES, Batch, Prompt
from rayrec.config import Config
from rayrec.config.training import TuneLoraConfig
from rayrec.models.answers import answer_words
from rayrec.models.checkpoints import quiet_transformers
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.factors import Factors
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.stages import EncoderKind, Loss, Part
from rayrec.training.engine import Engine

STEPS, CUT, ROWS, MICRO = 20, 10, 8, 2
CLIPPING = 0.05  # so small that every step of the plain loop is clipped
USERS, ITEMS, MAX_LEN = 5, 21, 7
WIDTH = 5  # so that biases, norms and the position table are of sizes that 2 does not divide
ZERO = (0, 1, 2, 3)
NF4 = "nf4"  # a precision of its own here: frozen weights in four bits, the rest in bf16
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
    kind: EncoderKind = EncoderKind.SASREC
    alone: bool = False  # no prompts: the encoder's own score
    more: bool = False  # rated histories, offsets, features of the floor, and two centred encoders that answer as one
    answers: bool = False  # in words


def name(zero: int, precision: str, world: int, start: str = "") -> str:
    return f"{precision}-zero{zero}-workers{world}{start and '-from-' + start}"


# ---------------------------------------------------------------------------------- what both loops share: model, data


OF_A_KIND = {
    EncoderKind.SASREC: {"width": WIDTH, "heads": 1, "dropout": 0.0},
    EncoderKind.MF: {"width": WIDTH},
    EncoderKind.NEUMF: {"width": 8, "dropout": 0.0},
    EncoderKind.GRU: {"width": WIDTH, "dropout": 0.0},
    EncoderKind.BERT4REC: {"width": WIDTH, "heads": 1, "dropout": 0.0},
}


def config(zero: int, precision: str, kind: EncoderKind = EncoderKind.SASREC, *, more: bool = False) -> Config:
    offset = {"offset": "feature_floor"} if more else {}
    of_encoder = offset | ({"history": "rated", "centred": True, "members": 2} if more else {})
    low = "bf16" if precision == NF4 else precision
    return Config.model_validate(
        {
            "engine": {"precision": low, "zero_stage": zero, "gradient_clipping": CLIPPING},
            "backbone": {"quantised": NF4 if precision == NF4 else None},
            "cluster": {"gpus_per_worker": int(precision in {"fp16", NF4})},
            "encoder": OF_A_KIND[kind] | {"kind": kind} | of_encoder,
            "mapper": offset | ({"features": "feature_floor"} if more else {}),
            "lora": {"dropout": 0.0},
        }
    )


def model(
    folder: Path,
    zero: int = 0,
    precision: str = "fp32",
    kind: EncoderKind = EncoderKind.SASREC,
    *,
    more: bool = False,
    speaks: bool = False,
) -> SASRecLLM:
    """The same weights each time; LoRA's zero matrix is drawn too, so that both of them have a gradient."""
    torch.manual_seed(0)
    shape = ModelShape(users=USERS, items=ITEMS, max_len=MAX_LEN, backbone=folder / "llama", answers=(352, 351))
    of = config(zero, precision, kind, more=more)
    built = build(of, shape, parts=set(Part), with_backbone=True, speaks=speaks)
    for parameter in built.parts()[Part.LORA].values():
        torch.nn.init.normal_(parameter, std=0.05)
    for module in built.modules():
        if isinstance(module, (SequenceEncoder, Factors)):
            torch.nn.init.normal_(module.item.weight, std=1.0)
        if isinstance(module, SequenceEncoder) and more:
            module.centre_on(torch.linspace(0, 2, ITEMS + 1).softmax(0))
    calibrate_mapper(built)
    return built


def batch_of(case: Case, step: int) -> Batch:
    """What the case learns from in a step; answers have as many tokens in every row, so that parts weigh alike."""
    made = batch(step, alone=case.alone)
    if case.answers:
        assert isinstance(made.prompt, Prompt)
        made = replace(made, prompt=replace(made.prompt, soft_at_B2K=None, answer_at_B=made.prompt.length_B - 5))
    return made


def batch(step: int, *, alone: bool = False) -> Batch:
    """A global batch: histories of different lengths, some empty, and prompts of different lengths."""
    draw = torch.Generator().manual_seed(step)
    shown_B = torch.randint(0, MAX_LEN + 1, (ROWS,), generator=draw)
    history_BL = torch.randint(1, ITEMS + 1, (ROWS, MAX_LEN), generator=draw)
    history_BL[torch.arange(MAX_LEN) < MAX_LEN - shown_B[:, None]] = 0
    return Batch(
        history_BL=history_BL,
        item_B=torch.randint(1, ITEMS + 1, (ROWS,), generator=draw),
        label_B=torch.randint(0, 2, (ROWS,), generator=draw).float(),
        prompt=None
        if alone
        else Prompt(
            torch.randint(0, 300, (ROWS, 20), generator=draw),
            torch.randint(12, 21, (ROWS,), generator=draw),
            torch.tensor([[[5], [9]]] * ROWS),
        ),
        user_B=torch.randint(0, USERS + 1, (ROWS,), generator=draw),
        label_BL=torch.randint(1, 3, (ROWS, MAX_LEN), generator=draw) * (history_BL > 0),
        floor_B=torch.randn(ROWS, generator=draw),
        features_BF=torch.randn(ROWS, FEATURES, generator=draw),
    )


def rows(whole: Batch, index: Tensor) -> Batch:
    prompt, part = whole.prompt, None
    if prompt is not None:
        assert isinstance(prompt, Prompt)
        soft, answer = (None if at is None else at[index] for at in (prompt.soft_at_B2K, prompt.answer_at_B))
        part = Prompt(prompt.tokens_BT[index], prompt.length_B[index], soft, answer)
    return Batch(
        user_B=whole.user_B[index],
        history_BL=whole.history_BL[index],
        item_B=whole.item_B[index],
        label_B=whole.label_B[index],
        prompt=part,
        label_BL=None if whole.label_BL is None else whole.label_BL[index],
        floor_B=None if whole.floor_B is None else whole.floor_B[index],
        features_BF=None if whole.features_BF is None else whole.features_BF[index],
    )


# ------------------------------------------------------------------------------------------------ the engine's process


def load(folder: Path, case: str) -> dict[str, Any]:
    """What ``run_cases`` kept of a case: tensors, numbers and names."""
    kept: dict[str, Any] = torch.load(folder / f"{case}.pt", weights_only=True)
    return kept


def run_cases(cases: Sequence[Case], world: int, folder: Path, device: str = "cpu") -> None:
    """Run them on a group of ``world`` processes and keep their results in ``folder``, where the backbone lies too."""
    meeting = folder / f"meet-{uuid.uuid4().hex}"
    mp.spawn(_run_group, args=(world, cases, meeting, device), nprocs=world)


def _run_group(rank: int, world: int, cases: Sequence[Case], meeting: Path, device: str) -> None:
    """One process of a group: every case in turn; rank 0 keeps what each gave."""
    folder = meeting.parent
    warnings.filterwarnings("ignore")
    quiet_transformers()
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": device}
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
    for case in cases:
        given = load(folder, case.start)["cut"] if case.start else None
        result = _train(case, given, rank, world, folder)
        if rank == 0:
            torch.save(result, folder / f"{case.name}.pt")
        dist.barrier()
    dist.destroy_process_group()


def _train(case: Case, given: dict[str, Tensor] | None, rank: int, world: int, folder: Path) -> dict[str, Any]:
    built = model(folder, case.zero, case.precision, case.kind, more=case.more, speaks=case.answers)
    if given is not None:
        with torch.no_grad():
            for key, parameter in trainable(built, case.trains).items():
                parameter.copy_(given[f"weights/{key}"])  # as the loop does: low precision rounds
    before = {key: value.clone() for key, value in (*built.named_parameters(), *built.named_buffers())}
    settings = config(case.zero, case.precision).engine
    engine = Engine(
        Objective(built, Loss.ANSWER_WORDS if case.answers else Loss.LABEL_BCE),
        trains=case.trains,
        engine=settings,
        precision=settings.precision,
        stage=STAGE,
        total_steps=STEPS,
        micro_batch=MICRO,
        accumulation=ROWS // (MICRO * world),
    )
    result: dict[str, Any] = {}
    if given is not None:
        engine.restore(given, CUT)
        result["restored"] = engine.state()
    result |= {"losses": [], "norms": [], "rates": []}
    for step in range(CUT if given is not None else 0, case.steps):
        if step == CUT:
            result["cut"] = engine.state()
        mine = torch.arange(rank, ROWS, world)
        built.set_mode(case.trains)
        result["losses"].append(engine.step([rows(batch_of(case, step), part) for part in mine.split(MICRO)], step))
        result["norms"].append(engine.gradient_norm)
        result["rates"].append(engine.learning_rate)
    if case.answers:  # as validation asks, beside the engine
        built.set_mode(())
        with torch.no_grad():
            result["told"] = float(answer_words(built, batch_of(case, STEPS).to(engine.device)))
    if case.zero != 3:  # there the weights are in pieces
        after = dict((*built.named_parameters(), *built.named_buffers()))
        result["changed"] = [key for key in before if not torch.equal(before[key], after[key])]
    return result | {"end": engine.state()}
