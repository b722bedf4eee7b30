"""Prompts that share their prefix against the same prompts each in one piece: values and gradients are the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from rayrec.batch import Batch, Prompt, SplitPrompt
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import resolve_answers
from rayrec.data.rows import HISTORY
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.behind import lay_out
from rayrec.models.copies import lay_copies
from rayrec.models.factors import Factors
from rayrec.models.lora import merge_lora
from rayrec.models.objectives import Objective
from rayrec.models.packing import pack
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.stages import EncoderKind, Part, StageName
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.model import stage_model

# Rows 0, 2 and 5 share a history, and so do 1 and 4; 3 is alone. None of them is long or short throughout.
GROUPS = [7, 3, 7, 5, 3, 7]
HISTORIES = {7: [1, 2, 3], 3: [4], 5: [5, 6]}
STARTS = {7: [*range(40, 52)], 3: [60, 61, 62], 5: [*range(70, 77)]}
ENDS = [[80, 81], [82, 83, 84, 85, 86], [87], [88, 89, 90], [91, 92, 93], [94, 95, 96, 97]]
SOFT = 2
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def table(*, hybrid: bool) -> pa.Table:
    columns: dict[str, Any] = {
        c.USER_ID: GROUPS,
        c.ITEM_ID: [9, 8, 7, 6, 5, 4],
        c.LABEL: [1, 0, 0, 1, 1, 0],
        HISTORY: pa.array([HISTORIES[group] for group in GROUPS], pa.list_(pa.int32())),
        c.SHARED: GROUPS,
    }
    tokens = pa.array([STARTS[g] + end for g, end in zip(GROUPS, ENDS, strict=True)], pa.list_(pa.int32()))
    cut = [len(STARTS[group]) for group in GROUPS]
    if hybrid:
        user_at = [at - at // 3 for at in cut]
        item_at = [at + len(end) // 2 for at, end in zip(cut, ENDS, strict=True)]
        return pa.table(columns | {c.HYBRID_TOKENS: tokens, c.USER_AT: user_at, c.TITLE_AT: cut, c.ITEM_AT: item_at})
    return pa.table(columns | {c.TEXT_TOKENS: tokens, c.TEXT_TITLE_AT: cut})


def built(tiny: Path, kind: EncoderKind = EncoderKind.SASREC, **lora: Any) -> SASRecLLM:
    answers = resolve_answers(load_tokenizer(tiny))
    torch.manual_seed(0)
    encoder = {"kind": kind, "width": 16, "max_len": 8} | ({} if kind is EncoderKind.MF else {"dropout": 0})
    settings: dict[str, Any] = {"encoder": encoder, "mapper": {"tokens": SOFT}, "lora": {"dropout": 0, **lora}}
    settings |= {"engine": {"precision": "fp32"}, "cluster": {"workers": 1}}
    shape = ModelShape(users=8, items=20, max_len=8, backbone=tiny, answers=(answers.yes, answers.no))
    made = build(Config.model_validate(settings), shape, parts=frozenset(Part), with_backbone=True)
    for parameter in made.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def model(tiny: Path) -> SASRecLLM:
    return built(tiny)


def pair(*, hybrid: bool, cut: Cut = Cut.LEARNING) -> tuple[Batch, Batch]:
    """The same rows whole and split."""
    rows = table(hybrid=hybrid)
    return collate(rows, SOFT, Cut.NOWHERE), collate(rows, SOFT, cut)


def learned(model: SASRecLLM, batch: Batch) -> dict[str, Tensor]:
    """Logits, and the gradient of a loss that weighs every row."""
    model.zero_grad()
    logit = model(batch)
    (logit * torch.linspace(-1, 2, batch.rows)).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logit": logit.detach()} | grads


# Tensors


@pytest.mark.parametrize("cut", [Cut.LEARNING, Cut.TITLE])
@pytest.mark.parametrize("hybrid", [False, True])
def test_prefix_and_suffix_make_up_the_prompt(hybrid: bool, cut: Cut) -> None:
    whole, split = (batch.prompt for batch in pair(hybrid=hybrid, cut=cut))
    assert isinstance(whole, Prompt) and isinstance(split, SplitPrompt)
    assert len(split.prefix_UP) == 3 and (split.suffix_length_B > 0).all()
    for row in range(len(GROUPS)):
        of = split.prefix_of_B[row]
        start, end = split.prefix_length_U[of], split.suffix_length_B[row]
        tokens = [*split.prefix_UP[of, :start].tolist(), *split.suffix_BS[row, :end].tolist()]
        assert tokens == whole.tokens_BT[row, : whole.length_B[row]].tolist()
        assert not split.prefix_UP[of, start:].any() and not split.suffix_BS[row, end:].any()
        if hybrid:
            assert torch.equal(split.soft_at_B2K[row] + start, whole.soft_at_B2K[row])
            assert (split.soft_at_B2K[row].min() == 0) == (cut is Cut.LEARNING)  # what learns is not shared


def test_cells_count_a_prefix_once() -> None:
    batch = pair(hybrid=False)[1]
    assert batch.cells == 3 * 12 + 6 * 5
    assert batch.filled == sum(map(len, STARTS.values())) + sum(map(len, ENDS))


def test_a_suffix_sees_its_prefix_and_itself_at_its_own_positions() -> None:
    prompt = pair(hybrid=False)[1].prompt
    assert isinstance(prompt, SplitPrompt)
    packed = pack(prompt)
    mask = packed.mask()[:, 0]
    for row in range(len(GROUPS)):
        of, start = int(prompt.prefix_of_B[row]), int(packed.last_B[row] - prompt.suffix_length_B[row] + 1)
        prefix, length = int(prompt.prefix_length_U[of]), int(prompt.suffix_length_B[row])
        assert packed.position_UT[of, start : start + length].tolist() == list(range(prefix, prefix + length))
        for place in range(length):
            seen = mask[of, start + place].nonzero().flatten().tolist()
            assert seen == [*range(prefix), *range(start, start + place + 1)]
    assert not packed.is_plain and mask.any(-1).all()


# Models


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("trained", "hybrid"), [({Part.LORA}, False), ({Part.ENCODER, Part.MAPPER}, True)])
def test_compiled_it_is_the_same(trained: set[Part], hybrid: bool, model: SASRecLLM) -> None:
    model.freeze_all_but(trained)
    model.set_mode(trained)
    batches = pair(hybrid=hybrid)
    expected = [learned(model, batch) for batch in batches]
    assert model.backbone is not None
    names = [name for name, _ in model.named_parameters()]
    model.backbone.decoder.compile(dynamic=True)
    assert [name for name, _ in model.named_parameters()] == names
    for batch, value in zip(batches, expected, strict=True):
        assert_same(learned(model, batch), value)


@pytest.mark.parametrize("cut", [Cut.LEARNING, Cut.TITLE])
def test_a_frozen_encoder_reads_a_history_once(cut: Cut, model: SASRecLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, split = pair(hybrid=True, cut=cut)
    assert model.encoder is not None
    read: list[int] = []
    encode = model.encoder.user_vectors
    monkeypatch.setattr(model.encoder, "user_vectors", lambda rows: read.append(rows.rows) or encode(rows))
    model.set_mode({Part.MAPPER})
    once = model.soft_tokens(split)
    torch.testing.assert_close(once, model.soft_tokens(whole), atol=1e-6, rtol=1e-6)
    model.set_mode({Part.ENCODER, Part.MAPPER})  # each row has a dropout of its own
    model.soft_tokens(split)
    assert read == [3, 6, 6]


def _noted(into: list[str], name: str, lay: Callable[..., Any], *given: Any) -> Any:
    into.append(name)
    return lay(*given)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("trained", "hybrid"),
    [
        ({Part.LORA}, False),
        ({Part.ENCODER, Part.MAPPER}, True),
        ({Part.MAPPER}, True),
        ({Part.ENCODER, Part.MAPPER, Part.LORA}, True),
    ],
    ids=["lora", "hybrid", "mapper", "joint"],
)
def test_values_and_gradients_are_those_of_whole_prompts(trained: set[Part], hybrid: bool, model: SASRecLLM) -> None:
    model.freeze_all_but(trained)
    model.set_mode(trained)
    whole, split = (learned(model, batch) for batch in pair(hybrid=hybrid))
    assert whole.keys() == split.keys() and len(whole) > 2 and whole["logit"].abs().max() > 1e-3
    assert_same(split, whole)


@pytest.mark.parametrize(("trained", "hybrid"), [({Part.LORA}, False), (set(Part), True)], ids=["lora", "joint"])
def test_an_adapter_may_be_on_every_linear_layer(trained: set[Part], hybrid: bool, tiny: Path) -> None:
    model = built(tiny, targets=LINEAR)
    for parameter in model.parameters():  # through so many adapters of this size fp32's rounding would show
        parameter.data = parameter.data.double()
    model.freeze_all_but(trained)
    model.set_mode(trained)
    whole, split = (learned(model, batch) for batch in pair(hybrid=hybrid))
    assert all(any(f".{layer}.lora_" in name and whole[name].any() for name in whole) for layer in LINEAR)
    assert_same(split, whole)
    merged(model)
    torch.testing.assert_close(model(pair(hybrid=hybrid)[1]).detach(), whole["logit"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in EncoderKind if kind is not EncoderKind.SASREC])
@pytest.mark.parametrize("trained", [{Part.ENCODER, Part.MAPPER}, set(Part)], ids=["hybrid", "joint"])
def test_every_encoder_speaks_to_the_backbone(kind: EncoderKind, trained: set[Part], tiny: Path) -> None:
    """Group 3's user is one whom the tables do not know."""
    model = built(tiny, kind)
    if isinstance(model.encoder, Factors):
        nn.init.normal_(model.encoder.user.weight.data[5:])  # batches count users from 1
    calibrate_mapper(model)
    model.freeze_all_but(trained)
    model.set_mode(trained)
    whole, split = (learned(model, batch) for batch in pair(hybrid=True))
    assert whole.keys() == split.keys() and whole["logit"].abs().max() > 1e-3
    assert whole["encoder.item.weight"].any() and whole["mapper.expand.weight"].any()
    assert_same(split, whole)


@pytest.mark.parametrize("cut", [Cut.LEARNING, Cut.TITLE])
@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize(
    "few",
    [(1, 0), (2, 0), (1, 99)],
    ids=["shared", "few rows", "short prefixes"],  # 6 rows behind 3
)
@torch.no_grad()
def test_scores_are_those_of_whole_prompts(
    few: tuple[int, int], hybrid: bool, cut: Cut, model: SASRecLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[str] = []
    for name, lay in (("lay_out", lay_out), ("lay_copies", lay_copies)):
        monkeypatch.setattr(f"rayrec.models.backbone.{name}", partial(_noted, laid, name, lay))
    for name, most in zip(("_FEW_ROWS", "_FEW_TOKENS"), few, strict=True):
        monkeypatch.setattr(f"rayrec.models.backbone.{name}", most)
    model.set_mode(())
    whole, split = (model(batch) for batch in pair(hybrid=hybrid, cut=cut))
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)
    assert laid == ["lay_out" if few == (1, 0) else "lay_copies"]


@pytest.mark.parametrize("few", [(1, 0), (1, 99)], ids=["shared", "copies"])
@torch.no_grad()
def test_in_bf16_scores_are_the_same_with_whole_pieces_of_tokens(
    few: tuple[int, int], model: SASRecLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in zip(("_FEW_ROWS", "_FEW_TOKENS"), few, strict=True):
        monkeypatch.setattr(f"rayrec.models.backbone.{name}", most)
    model.set_mode(())
    padded, bare = in_bf16(model, pair(hybrid=True, cut=Cut.TITLE)[1], monkeypatch)
    torch.testing.assert_close(padded, bare, atol=1e-2, rtol=1e-2)


def test_in_bf16_a_step_is_the_same_with_whole_pieces_of_tokens(
    model: SASRecLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where LoRA learns, prefixes and suffixes are one sequence."""
    model.set_mode({Part.LORA})
    padded, bare = in_bf16(model, pair(hybrid=False)[1], monkeypatch)
    torch.testing.assert_close(padded, bare, atol=1e-2, rtol=1e-2)
    learned = [*model.parts()[Part.LORA].values()]
    ours, theirs = (torch.autograd.grad(logit_B.sum(), learned) for logit_B in (padded, bare))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def in_bf16(model: SASRecLLM, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Logits by a backbone in bf16, with padding behind the tokens, and without."""
    assert model.backbone is not None
    lengths: list[int] = []
    model.backbone.decoder.to(torch.bfloat16).register_forward_pre_hook(
        lambda _, args, options: lengths.append(options["inputs_embeds"].shape[1]), with_kwargs=True
    )
    padded = model(batch)
    with monkeypatch.context() as unpadded:
        unpadded.setattr("rayrec.models.backbone.short_of_pieces", lambda count, dtype: 0)
        bare = model(batch)
    passes = len(lengths) // 2
    assert lengths[passes - 1] % 32 == 0 < lengths[passes - 1] - lengths[-1] < 32
    return padded, bare


def test_nothing_left_of_the_soft_tokens_keeps_a_gradient(model: SASRecLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is called twice, and only the second call is recorded for the backward pass."""
    model.freeze_all_but({Part.MAPPER})
    model.set_mode({Part.MAPPER})
    assert model.backbone is not None
    calls, decode = [], model.backbone.decoder.forward

    def forward(**options: Any) -> Any:
        found = decode(**options)
        calls.append((options["inputs_embeds"].shape[:2], found.last_hidden_state.requires_grad))
        return found

    monkeypatch.setattr(model.backbone.decoder, "forward", forward)
    split = pair(hybrid=True)[1]
    assert isinstance(split.prompt, SplitPrompt)
    model(split)
    assert calls == [((3, 8), False), ((1, int(split.prompt.suffix_length_B.sum())), True)]


def recomputing(model: SASRecLLM) -> None:
    """Under gradient checkpointing no keys are kept, and the prefix goes along."""
    assert model.backbone is not None
    model.backbone.decoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.backbone.recomputes = True


def merged(model: SASRecLLM) -> None:
    assert model.backbone is not None
    merge_lora(model.backbone)
    assert Part.LORA not in model.parts() and not any("lora" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(("change", "cut"), [(recomputing, Cut.NOWHERE), (merged, Cut.LEARNING)])
def test_another_way_to_compute_gives_the_same(change: Callable[[SASRecLLM], None], cut: Cut, model: SASRecLLM) -> None:
    model.freeze_all_but({Part.MAPPER})
    model.set_mode({Part.MAPPER})
    split = pair(hybrid=True)[1]
    expected = learned(model, pair(hybrid=True, cut=cut)[1])
    change(model)
    assert_same(learned(model, split), expected)


# A stage


def joint_steps(tiny: Path, fast: dict[str, Any], steps: int = 3) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of joint tuning from scratch: each step two slices of the rows, as the loop cuts them."""
    stage = {"trains": list(Part), "starts_from": {"encoder": "fresh", "lora": "fresh"}, "batch": 6, "micro_batch": 3}
    settings: dict[str, Any] = {
        "encoder": {"width": 16, "max_len": 8, "dropout": 0},
        "mapper": {"tokens": SOFT},
        "lora": {"dropout": 0},
        "backbone": {"sources": str(tiny)},
        "engine": {"precision": "fp32"},
        "cluster": {"workers": 1},
        "stages": {"tune_hybrid": stage},
        "fast": fast,
    }
    facts = DataFacts(users=8, items=20, max_len=8, rows={})
    job = StageJob(config=Config.model_validate(settings), stage=StageName.TUNE_HYBRID, facts=facts, data="")
    model = stage_model(job)
    model.freeze_all_but(job.trains)
    model.set_mode(job.trains)
    learned = trainable(model, job.trains)
    optimizer = torch.optim.SGD(learned.values(), lr=0.3)
    losses = []
    for batch in job.micro_batches(table(hybrid=True)) * steps:
        loss = Objective(model, job.settings.loss)(batch) / job.accumulation
        loss.backward()
        losses.append(float(loss.detach()))
        if len(losses) % job.accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses, {name: value.detach() for name, value in learned.items()}


def test_joint_tuning_takes_the_steps_of_the_plain_path(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All three parts learn, LoRA left of the soft tokens as well."""
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path))
    plain = {"split_prompts": False, "shared_rows": 1, "merge_lora": False, "plain_attention": False}
    start = joint_steps(tiny, plain, steps=0)[1]
    expected, whole = joint_steps(tiny, plain)
    losses, weights = joint_steps(tiny, {})
    assert losses == pytest.approx(expected, abs=1e-6) and abs(losses[0] - losses[4]) > 1e-3
    assert_same(weights, whole)
    for part in Part:
        moved = [(whole[name] - start[name]).abs().max() for name in whole if name.startswith(f"{part}.")]
        assert max(moved) > 1e-3
