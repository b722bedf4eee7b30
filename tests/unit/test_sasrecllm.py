"""The composed model on a tiny LLaMA: answers as the whole causal LM gives them, soft tokens, freezing, precision."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayrec.batch import Batch, Prompt
from rayrec.config import Config
from rayrec.config.model import LoraConfig, MapperConfig
from rayrec.data.prompts import resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.errors import InputError
from rayrec.models.backbone import Backbone
from rayrec.models.loading import load_backbone
from rayrec.models.lora import add_lora
from rayrec.models.mapper import Mapper
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build, calibrate_mapper, trainable
from rayrec.stages import Part
from rayrec.training.job import DataFacts
from rayrec.training.model import ScoringJob, scoring_model

ENCODER, MAPPER, LORA = Part.ENCODER, Part.MAPPER, Part.LORA
TEXTS = ["#Answer:", "#Question: A user has given high ratings. #Answer:", "The Film 12 (1987)"]


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def answers(tokenizer: Any) -> tuple[int, int]:
    found = resolve_answers(tokenizer)
    return found.yes, found.no


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Any:
    """The causal LM as transformers runs it, with its full (B, T, vocabulary) logits."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def backbone(tiny: Path, answers: tuple[int, int], score: str = "yes_no", dtype: Any = torch.float32) -> Backbone:
    return load_backbone(tiny, answers=answers, yes_only=score == "yes", dtype=dtype).eval()


def config(**changes: Any) -> Config:
    base = {"encoder": {"width": 16, "max_len": 8}, "engine": {"precision": "fp32"}, "cluster": {"workers": 1}}
    return Config.model_validate(base | changes)


@pytest.fixture
def model(tiny: Path, answers: tuple[int, int]) -> SASRecLLM:
    """All parts, each with weights that show."""
    torch.manual_seed(0)
    shape = ModelShape(users=5, items=20, max_len=8, backbone=tiny, answers=answers)
    made = build(config(mapper={"tokens": 2}), shape, parts=frozenset(Part), with_backbone=True)
    for parameter in made.parts()[LORA].values():
        nn.init.normal_(parameter, std=0.3)
    return made


def prompt(rows: Sequence[Sequence[int]], soft_at: Tensor | None = None) -> Prompt:
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(length.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return Prompt(tokens, length, soft_at)


def batch(of: Prompt | None) -> Batch:
    history = torch.tensor([[0, 0, 1], [2, 3, 4], [0, 0, 0]])
    return Batch(torch.tensor([1, 2, 3]), history, torch.tensor([5, 6, 7]), torch.tensor([1.0, 0.0, 1.0]), of)


def hybrid() -> Batch:
    """Two soft tokens for each vector; in the middle, at the front and at the end."""
    soft_at = torch.tensor([[[1, 2], [5, 6]], [[0, 1], [2, 3]], [[3, 4], [5, 6]]])
    return batch(prompt([range(40, 50), range(50, 55), range(60, 67)], soft_at))


# The answer


@pytest.mark.parametrize("score", ["yes_no", "yes"])
@torch.no_grad()
def test_the_answer_is_the_causal_lms(
    score: str, tiny: Path, answers: tuple[int, int], whole: Any, tokenizer: Any
) -> None:
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert len({len(row) for row in rows}) == 3
    found = SASRecLLM(None, None, backbone(tiny, answers, score))(batch(prompt(rows)))
    for row, logit in zip(rows, found, strict=True):
        yes, no = whole(input_ids=torch.tensor([row])).logits[0, -1, list(answers)]
        expected = yes - no if score == "yes_no" else yes
        assert abs(expected) > 1e-3
        torch.testing.assert_close(logit, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_lies_in_the_padding_does_not_matter(model: SASRecLLM) -> None:
    model.set_mode(())
    clean, dirty = batch(prompt([[7] * 9, [8] * 4, [9]])), batch(prompt([[7] * 9, [8] * 4, [9]]))
    dirty.prompt.tokens_BT[torch.arange(9) >= dirty.prompt.length_B[:, None]] = 77
    assert torch.equal(model(clean), model(dirty))


@torch.no_grad()
def test_soft_tokens_of_words_are_the_words(
    tiny: Path, answers: tuple[int, int], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put the embeddings of known words where the soft tokens go: the plain prompt with these words must come out."""
    made = SASRecLLM(None, None, backbone(tiny, answers))
    words = [[*range(40, 48)], [*range(50, 55)], [*range(60, 67)]]
    soft_at = torch.tensor([[[1, 2], [5, 6]], [[0, 1], [2, 3]], [[3, 4], [5, 6]]])
    known = torch.stack([torch.tensor(row)[places] for row, places in zip(words, soft_at, strict=True)])
    plain = made(batch(prompt(words)))
    blank = [
        [0 if i in places else word for i, word in enumerate(row)]
        for row, places in zip(words, soft_at.flatten(1).tolist(), strict=True)
    ]
    monkeypatch.setattr(made, "soft_tokens", lambda _: made.backbone.embed(known))
    forced = made(batch(prompt(blank, soft_at)))
    torch.testing.assert_close(forced, plain, atol=1e-5, rtol=0)
    assert not torch.allclose(made(batch(prompt(blank))), plain, atol=1e-3)  # the places do matter


@torch.no_grad()
def test_soft_tokens_are_the_mapped_vectors(model: SASRecLLM) -> None:
    model.set_mode(())
    rows = hybrid()
    soft = model.soft_tokens(rows)
    assert soft.shape == (3, 2, 2, 64)
    user = model.mapper(model.encoder.user_vectors(rows))
    item = model.mapper(model.encoder.item_vectors(rows.item_B))
    assert torch.equal(soft[:, 0], user) and torch.equal(soft[:, 1], item)


def test_the_batch_decides_the_path(model: SASRecLLM) -> None:
    model.set_mode(())
    encoded = model(batch(None))
    assert torch.equal(encoded, model.encoder.score(batch(None)))
    history = torch.tensor([[0, 0, 9], [9, 9, 9], [0, 9, 9]])
    text, other = batch(prompt([[7] * 9, [8] * 4, [9]])), hybrid()
    assert torch.equal(model(text), model(replace(text, history_BL=history)))  # text only
    assert not torch.equal(model(other), model(replace(other, history_BL=history)))


# Precision


@torch.no_grad()
def test_answers_are_fp32_whatever_the_backbone(tiny: Path, answers: tuple[int, int]) -> None:
    made = backbone(tiny, answers, dtype=torch.bfloat16)
    rows = prompt([[5, 6, 7], [8]])
    embeddings = made.embed(rows.tokens_BT)
    assert embeddings.dtype is torch.bfloat16
    logit = made.answer(embeddings, rows.length_B)
    assert logit.dtype is made.answer_rows_2H.dtype is torch.float32
    states = made.decoder(inputs_embeds=embeddings).last_hidden_state[torch.arange(2), rows.length_B - 1].float()
    expected = states @ (made.answer_rows_2H[0] - made.answer_rows_2H[1])
    torch.testing.assert_close(logit, expected, atol=1e-5, rtol=0)
    assert not torch.equal(logit, logit.bfloat16().float())  # not merely rounded and cast back


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_scoring_model_casts_parameters_only(
    precision: str, dtype: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path))
    settings = config(engine={"precision": precision}, backbone={"sources": str(tiny)})
    facts = DataFacts(users=5, items=20, max_len=8, rows={})
    made = scoring_model(ScoringJob(config=settings, facts=facts, data="", parts={}, uses_backbone=True))
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}
    assert made.backbone.answer_rows_2H.dtype is torch.float32
    assert made(batch(prompt([[5, 6], [7], [8, 9, 10]]))).dtype is torch.float32
    assert not any(module.training for module in made.modules())


# Parts and freezing


def test_parts_are_all_but_the_backbones_own(model: SASRecLLM) -> None:
    parts = model.parts()
    assert set(parts) == set(Part)
    counted = {name: sum(p.numel() for p in found.values()) for name, found in parts.items()}
    width, expanded, hidden = 16, 160, 64
    block = 4 * width + 4 * width * width + 4 * width + 2 * (width * width + width)
    assert counted[ENCODER] == (21 + 8) * width + 2 * block + 2 * width
    assert counted[MAPPER] == width * expanded + expanded + expanded * 2 * hidden + 2 * hidden
    assert counted[LORA] == 2 * (8 * (hidden + hidden) + 8 * (hidden + hidden // 2))  # q and v of two layers
    assert all(".q_proj." in name or ".v_proj." in name for name in parts[LORA])
    ids = [id(p) for found in parts.values() for p in found.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("trained", [(), (ENCODER,), (MAPPER,), (LORA,), (ENCODER, MAPPER), tuple(Part)], ids=str)
def test_freezing_leaves_exactly_the_trained_parts(model: SASRecLLM, trained: tuple[Part, ...]) -> None:
    model.freeze_all_but((ENCODER, MAPPER, LORA))
    model.freeze_all_but(trained)
    expected = {id(p) for part in trained for p in model.parts()[part].values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == expected
    assert {id(p) for p in trainable(model, trained).values()} == expected
    if trained:
        model(hybrid()).sum().backward()
        assert {id(p) for p in model.parameters() if p.grad is not None} <= expected
        assert all(any(p.grad.any() for p in model.parts()[part].values()) for part in trained)


def test_the_bare_backbone_is_frozen_from_the_start(tiny: Path, answers: tuple[int, int]) -> None:
    assert not any(p.requires_grad for p in backbone(tiny, answers).parameters())


def test_trainable_names_its_parts_in_a_fixed_order(model: SASRecLLM) -> None:
    names = list(trainable(model, {MAPPER, ENCODER}))
    assert names == list(trainable(model, [ENCODER, MAPPER]))
    assert [name.partition(".")[0] for name in names] == sorted(name.partition(".")[0] for name in names)
    assert "mapper.expand.weight" in names and "encoder.item.weight" in names


def dropouts_that_act(model: SASRecLLM) -> set[Part]:
    """The parts with a dropout in train mode."""
    acting = {name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.training and m.p}
    return {ENCODER for name in acting if name.startswith("encoder.")} | {LORA for n in acting if "lora_dropout" in n}


@pytest.mark.parametrize(
    ("trained", "acting"),
    [
        ((), ()),
        ((MAPPER,), ()),
        ((ENCODER, MAPPER), (ENCODER,)),
        ((LORA,), (LORA,)),
        (tuple(Part), (ENCODER, LORA)),
    ],
    ids=str,
)
def test_dropout_acts_in_trained_parts_only(
    model: SASRecLLM, trained: tuple[Part, ...], acting: tuple[Part, ...]
) -> None:
    model.train()
    model.set_mode(trained)
    assert dropouts_that_act(model) == {*acting}
    with torch.no_grad():
        same = torch.equal(model(hybrid()), model(hybrid()))
    assert same == (not acting)


def test_new_lora_changes_nothing(tiny: Path, answers: tuple[int, int]) -> None:
    rows = batch(prompt([[5, 6], [7], [8, 9, 10]]))
    plain, tuned = backbone(tiny, answers), backbone(tiny, answers)
    add_lora(tuned, LoraConfig())
    assert torch.equal(SASRecLLM(None, None, plain)(rows), SASRecLLM(None, None, tuned.eval())(rows))


def test_missing_lora_targets_are_refused(tiny: Path, answers: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"lora\.targets: the backbone has no module named qkv_proj, x"):
        add_lora(backbone(tiny, answers), LoraConfig(targets=("q_proj", "x", "qkv_proj")))


def test_what_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a causal language model") as caught:
        load_backbone(tmp_path, answers=(1, 2), yes_only=False, dtype=torch.float32)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_cut_short_are_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        InputError, match=r"not a causal language model that transformers can load: .* header too small"
    ):
        load_backbone(tmp_path / "cut", answers=(1, 2), yes_only=False, dtype=torch.float32)


# Mapper


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_mapper_gives_so_many_tokens(tokens: int) -> None:
    torch.manual_seed(0)
    made = Mapper(MapperConfig(tokens=tokens, expansion=4), width=6, hidden=10)
    assert made.expand.weight.shape == (24, 6) and made.project.weight.shape == (10 * tokens, 24)
    vectors = torch.randn(5, 6)
    soft = made(vectors)
    assert soft.shape == (5, tokens, 10)
    inner = (vectors @ made.expand.weight.T + made.expand.bias).clamp(min=0)
    flat = inner @ made.project.weight.T + made.project.bias
    torch.testing.assert_close(soft[:, -1], flat[:, -10:])


def test_match_spread_scales_to_the_words() -> None:
    torch.manual_seed(0)
    made, vectors = Mapper(MapperConfig(), width=8, hidden=12), torch.randn(40, 8)
    made.match_spread(vectors, 0.123)
    assert float(made(vectors).detach().std()) == pytest.approx(0.123, rel=1e-5)
    made.match_spread(torch.zeros(3, 8).fill_(0.0), 0.1)
    assert all(parameter.isfinite().all() for parameter in made.parameters())


def test_a_new_mapper_starts_at_the_scale_of_the_words(model: SASRecLLM, whole: Any) -> None:
    calibrate_mapper(model)
    soft = model.mapper(model.encoder.item.weight[1:]).detach()
    assert float(soft.std()) == pytest.approx(float(whole.get_input_embeddings().weight.detach().std()), rel=1e-5)
