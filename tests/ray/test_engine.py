"""The engine on two gloo processes: against a plain loop, against itself on one, and interrupted."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import CLIPPING, CUT, STAGE, STEPS, ZERO, Case, batch_of, load, model, name, run_cases
from torch import Tensor

from rayrec.batch import Batch, Prompt
from rayrec.models.averaged import Averaged
from rayrec.models.sasrecllm import SASRecLLM, trainable
from rayrec.models.tiny import write_tiny_llama
from rayrec.stages import EncoderKind, Part
from rayrec.training.engine import learning_rate, parameter_groups

PEAK = 3e-4  # the encoder's learning rate in `engines`


def of_other_encoders() -> list[Case]:
    """Each alone and below the backbone: what only one of the two reads must not disturb the other."""
    return [
        Case(f"{kind}-{'alone' if alone else 'hybrid'}-zero{zero}", zero, trains=trains, kind=kind, alone=alone)
        for kind in EncoderKind
        if kind is not EncoderKind.SASREC
        for zero in (2, 3)
        for alone, trains in ((True, (Part.ENCODER,)), (False, (Part.ENCODER, Part.MAPPER)))
    ]


def of_more() -> list[Case]:
    """Rated histories, offsets, whose weights are tensors of one number, and encoders with members."""
    return [
        Case(f"more-{'alone' if alone else 'hybrid'}-zero{zero}", zero, trains=trains, alone=alone, more=True)
        for zero in ZERO
        for alone, trains in ((True, (Part.ENCODER,)), (False, (Part.ENCODER, Part.MAPPER)))
    ]


OTHERS = [*of_other_encoders(), *of_more()]
QUICK = [case for case in OTHERS if case.alone == (case.zero % 2 == 0)]  # each encoder, either way; the rest is `full`


def of_answers() -> list[Case]:
    return [Case(f"answers-zero{zero}", zero, trains=(Part.LORA,), answers=True) for zero in ZERO]


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
        found += [*QUICK, *of_answers()]
        for z in (2, 3):
            hybrid = Case(f"more-bf16-zero{z}", z, "bf16", trains=(Part.ENCODER, Part.MAPPER), more=True)
            found += [hybrid, replace(hybrid, name=f"{hybrid.name}-resumed", start=hybrid.name)]
    else:
        for z in ZERO:  # to another number of workers, two of them to another stage besides
            whole, other = name(z, "fp32", 2), (0, 2, 1, 3)[z]
            found.append(Case(name(other, "fp32", 1, whole), other, start=whole))
    return found


# ----------------------------------------------------------------------------------------------- the slow, obvious way


def plain_loop(folder: Path, case: Case) -> dict[str, Any]:
    """The same training in plain torch, whole batches at once."""
    built = model(folder, kind=case.kind, more=case.more, speaks=case.answers)
    built.requires_grad_(False)
    parameters = dict(trainable(built, case.trains))
    groups = []
    for key, parameter in parameters.items():
        parameter.requires_grad_(True)
        bare = "norm" in key or "bias" in key.split(".")[-1]
        peak = PEAK if key.startswith("encoder.") else 1e-3
        groups.append({"params": [parameter], "lr": 0.0, "peak": peak, "weight_decay": 0.0 if bare else 0.01})
    optimizer = torch.optim.AdamW(groups)
    losses, norms = [], []
    for step in range(STEPS):
        rise = 4  # 20 steps, a fifth of them warm-up
        share = (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / (STEPS - rise)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        loss = plain_loss(built, batch_of(case, step))
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters.values():
            if parameter.grad is None:  # below the backbone an encoder's own score takes no part, and still decays
                parameter.grad = torch.zeros_like(parameter)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIPPING)))
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = {f"weights/{key}": parameter.detach().clone() for key, parameter in parameters.items()}
    found = {"losses": losses, "norms": norms, "end": weights}
    return found | ({"told": float(plain_loss(built, batch_of(case, STEPS)).detach())} if case.answers else {})


def plain_loss(built: SASRecLLM, rows: Batch) -> Tensor:
    if rows.prompt is None and isinstance(built.encoder, Averaged):
        logits = [member.score(rows) for member in built.encoder.members]  # type: ignore[operator]
        losses = [torch.nn.functional.binary_cross_entropy_with_logits(logit_B, rows.label_B) for logit_B in logits]
        return torch.stack(losses).mean()
    if not isinstance(rows.prompt, Prompt) or rows.prompt.answer_at_B is None:
        return torch.nn.functional.binary_cross_entropy_with_logits(built(rows), rows.label_B)
    assert built.backbone is not None and built.backbone.word_loss is not None
    tokens_BT = rows.prompt.tokens_BT
    states_BTH = built.backbone.decoder(input_ids=tokens_BT).last_hidden_state
    log_p_BTV = (states_BTH @ built.backbone.word_loss.weight_VH.T).log_softmax(-1)
    each = [
        -log_p_BTV[row, at - 1, tokens_BT[row, at]]
        for row, (start, end) in enumerate(zip(rows.prompt.answer_at_B, rows.prompt.length_B, strict=True))
        for at in range(int(start), int(end))
    ]
    return torch.stack(each).mean()


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case of both groups has left its result."""
    folder = tmp_path_factory.mktemp("engine")
    write_tiny_llama(folder / "llama")
    for world in (2, 1):
        run_cases(cases(world), world, folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    return plain_loop(folder, Case("plain", 0))


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


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_every_encoder_equals_a_plain_loop(case: Case, folder: Path) -> None:
    assert_equals_a_plain_loop(case, folder)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_so_it_does_under_the_other_stages(tmp_path: Path) -> None:
    rest = [case for case in OTHERS if case not in QUICK]
    write_tiny_llama(tmp_path / "llama")
    run_cases(rest, 2, tmp_path)
    for case in rest:
        assert_equals_a_plain_loop(case, tmp_path)


def assert_equals_a_plain_loop(case: Case, folder: Path) -> None:
    ours, expected = load(folder, case.name), plain_loop(folder, case)
    assert ours["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    weights = [key for key in ours["end"] if key.startswith("weights/")]
    assert set(weights) == set(expected["end"])
    if case.kind is EncoderKind.BERT4REC:
        biases = [key for key in weights if "qkv.bias" in key]
        assert furthest(of_keys(ours["end"], biases), of_keys(expected["end"], biases), biases) <= 2 * STEPS * PEAK
        ours, expected = ({"end": state["end"] | without_keys(state["end"], biases)} for state in (ours, expected))
    assert furthest(ours["end"], expected["end"], weights) < 1e-5


def of_keys(state: dict[str, Tensor], biases: Sequence[str]) -> dict[str, Tensor]:
    """The softmax does not see a bias of keys, so that Adam makes steps of nothing but rounding, either way."""
    return {key: state[key].chunk(3)[1] for key in biases}


def without_keys(state: dict[str, Tensor], biases: Sequence[str]) -> dict[str, Tensor]:
    return {key: torch.cat(state[key].chunk(3)[::2]) for key in biases}


@pytest.mark.parametrize("case", of_answers(), ids=lambda case: case.name)
def test_answers_in_words_equal_a_plain_loop(case: Case, folder: Path) -> None:
    ours, expected = load(folder, case.name), plain_loop(folder, case)
    assert ours["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert ours["told"] == pytest.approx(expected["told"], abs=1e-5)
    weights = [key for key in ours["end"] if key.startswith("weights/")]
    assert set(weights) == set(expected["end"]) and furthest(ours["end"], expected["end"], weights) < 1e-5


@pytest.mark.parametrize("zero", ZERO)
def test_one_worker_equals_two(zero: int, folder: Path) -> None:
    one, two = (load(folder, name(zero, "fp32", world)) for world in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", ZERO)
def test_goes_on_bit_for_bit(zero: int, precision: str, folder: Path) -> None:
    whole = name(zero, precision, 2)
    assert_goes_on(load(folder, whole), load(folder, name(zero, precision, 2, whole)))


@pytest.mark.parametrize("zero", [2, 3])
def test_an_offset_goes_on_bit_for_bit(zero: int, folder: Path) -> None:
    expected = load(folder, f"more-bf16-zero{zero}")
    assert_goes_on(expected, load(folder, f"more-bf16-zero{zero}-resumed"))
    assert expected["end"]["weights/mapper.features.weight"].any()
    weights = [expected["end"][f"weights/mapper.offset.{key}"] for key in ("own", "start", "bias")]
    assert all(weight.dtype is torch.float32 and weight != weight.bfloat16() for weight in weights)  # finer than bf16


def assert_goes_on(expected: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in ("losses", "norms", "rates"):
        assert ours[key] == expected[key][CUT:]
    assert set(ours["end"]) == set(expected["end"])
    assert [key for key in ours["end"] if not torch.equal(ours["end"][key], expected["end"][key])] == []
    unmoved = [k for k in expected["end"] if torch.equal(expected["end"][k], expected["cut"][k])]
    # The second half trains all that is read below the backbone.
    assert all("encoder." in k and "offset." in k for k in unmoved)


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
