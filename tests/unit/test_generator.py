"""Answers in words against the slow way: no padding, no cache, one token after another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.config import Config
from rayrec.config.model import LoraConfig
from rayrec.models.generator import Generator
from rayrec.models.loading import load_causal_lm, speaking_backbone
from rayrec.models.lora import add_lora
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part
from rayrec.training.generator import open_generator
from rayrec.training.parts import save_part

PROMPTS = ["#Answer:", "A user has given high ratings to the following items:", "The Film 12 (1987)", "Yes or"]
LONGEST = 14


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Any:
    """Its output is made less even, so that it does not say one token for ever and sometimes ends."""
    torch.manual_seed(0)
    model = load_causal_lm(tiny, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


@pytest.fixture
def generator(whole: Any, byte_level: Any) -> Generator:
    return Generator(whole, byte_level)


def tokens(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


def until_end(tokenizer: Any, ids: list[int]) -> str:
    end = tokenizer.eos_token_id
    spoken = ids[: ids.index(end)] if end in ids else ids
    text: str = tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@torch.no_grad()
def slow_likeliest(whole: Any, tokenizer: Any, prompt: list[int]) -> str:
    ids = list(prompt)
    for _ in range(LONGEST):
        ids.append(int(whole(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return until_end(tokenizer, ids[len(prompt) :])


@torch.no_grad()
def slow_samples(whole: Any, tokenizer: Any, prompt: list[int], count: int, temperature: float) -> list[str]:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        ids = torch.tensor([prompt] * count)
        for _ in range(LONGEST):
            logits = whole(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial((logits / temperature).softmax(-1), 1)], dim=1)
            if (ids[:, len(prompt) :] == tokenizer.eos_token_id).any(1).all():
                break
    return [until_end(tokenizer, row) for row in ids[:, len(prompt) :].tolist()]


def test_likeliest_tokens_are_those_of_the_slow_way(generator: Generator, whole: Any, byte_level: Any) -> None:
    said = generator.likeliest(tokens(byte_level), LONGEST)
    assert said == [slow_likeliest(whole, byte_level, prompt) for prompt in tokens(byte_level)]
    assert len(set(said)) > 1
    assert generator.likeliest(tokens(byte_level)[2:3], LONGEST) == said[2:3]


def test_an_end_mark_ends_an_answer(whole: Any, byte_level: Any) -> None:
    """Where the likeliest token of one prompt is the end mark, it says nothing and the others go on."""
    free = Generator(whole, byte_level)
    prompts = tokens(byte_level)
    with torch.no_grad():
        first = int(whole(input_ids=torch.tensor(prompts[:1])).logits[0, -1].argmax())
    free._end = first
    said = free.likeliest(prompts, LONGEST)
    assert said[0] == "" and any(said[1:])


def test_samples_are_those_of_the_slow_way(generator: Generator, whole: Any, byte_level: Any) -> None:
    for prompt in tokens(byte_level):
        expected = slow_samples(whole, byte_level, prompt, 5, 0.7)
        assert generator.samples(prompt, count=5, temperature=0.7, longest=LONGEST, seed=3) == expected
        assert len(set(expected)) > 1


def test_samples_depend_on_prompt_and_seed_alone(generator: Generator, byte_level: Any) -> None:
    def drawn(seed: int) -> list[str]:
        return generator.samples(tokens(byte_level)[1], count=4, temperature=1.0, longest=LONGEST, seed=seed)

    first = drawn(7)
    torch.rand(5)
    before = torch.get_rng_state()
    assert drawn(7) == first != drawn(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_checkpoint_says_of_generation_is_not_read(whole: Any, byte_level: Any) -> None:
    from transformers import GenerationConfig  # noqa: PLC0415

    def drawn() -> list[str]:
        return Generator(whole, byte_level).samples(
            tokens(byte_level)[1], count=4, temperature=1.0, longest=LONGEST, seed=0
        )

    plain = drawn()
    whole.generation_config = GenerationConfig(top_k=1, repetition_penalty=5.0, min_new_tokens=3)
    assert drawn() == plain and len(set(plain)) > 1


def test_a_prompt_goes_through_once(generator: Generator, whole: Any, byte_level: Any) -> None:
    seen: list[tuple[int, ...]] = []

    hook = whole.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    prompt = tokens(byte_level)[1]
    generator.samples(prompt, count=6, temperature=1.0, longest=3, seed=0)
    hook.remove()
    assert seen[0] == (1, len(prompt) - 1) and set(seen[1:]) == {(6, 1)}


def test_a_lora_speaks_merged_or_not(tiny: Path, byte_level: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = SASRecLLM(None, None, speaking_backbone(load_causal_lm(tiny, dtype=torch.float32), answers=(5, 6)))
    assert trained.backbone is not None
    add_lora(trained.backbone, LoraConfig())
    weights = {name: torch.randn_like(p) for name, p in trained.parts()[Part.LORA].items()}
    save_part(str(tmp_path / "lora"), Part.LORA, weights, {})

    def said(lora: str | None, merge: bool) -> list[str]:
        tree = {"backbone": {"sources": [str(tiny)]}, "engine": {"precision": "fp32"}, "fast": {"merge_lora": merge}}
        return open_generator(Config.model_validate(tree), lora, "cpu").likeliest(tokens(byte_level), LONGEST)

    merged = said(str(tmp_path / "lora"), merge=True)
    assert merged == said(str(tmp_path / "lora"), merge=False) != said(None, merge=True)
