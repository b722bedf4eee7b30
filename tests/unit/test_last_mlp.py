"""Which tokens the last layer's MLP computes; that logits and gradients stay the same is test_split's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_split import GROUPS, built, learned, pair
from torch import nn

from rayrec.data.collate import Cut
from rayrec.models.last_mlp import LastMlp
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part


@pytest.fixture
def model(tiny: Path) -> SASRecLLM:
    return built(tiny)


@pytest.fixture
def seen(model: SASRecLLM) -> Iterator[list[int]]:
    """Tokens of each pass through a layer of that MLP."""
    assert model.backbone is not None
    tokens: list[int] = []
    gate = model.backbone.decoder.layers[-1].mlp.gate_proj
    handle = gate.register_forward_pre_hook(lambda _, given: tokens.append(given[0][..., 0].numel()))
    yield tokens
    handle.remove()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_learning_step_computes_one_a_row(model: SASRecLLM, seen: list[int], frozen: bool) -> None:
    model.freeze_all_but({Part.MAPPER} if frozen else {Part.MAPPER, Part.LORA})
    learned(model, pair(hybrid=True)[1])
    assert seen == ([0, len(GROUPS)] if frozen else [len(GROUPS)])  # frozen: prefixes first, which no one reads


def test_so_does_scoring(model: SASRecLLM, seen: list[int]) -> None:
    with torch.no_grad():
        model(pair(hybrid=True, cut=Cut.TITLE)[1])
    assert seen == [0, len(GROUPS)]


def test_whole_prompts_are_computed_whole(model: SASRecLLM, seen: list[int]) -> None:
    whole, _ = pair(hybrid=True)
    learned(model, whole)
    assert whole.prompt is not None and seen == [whole.cells]


def test_so_is_what_gradient_checkpointing_computes_again(model: SASRecLLM, seen: list[int]) -> None:
    assert model.backbone is not None
    expected = learned(model, pair(hybrid=True)[1])
    model.backbone.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    model.backbone.recomputes = True
    model.backbone.train()
    seen.clear()
    found = learned(model, pair(hybrid=True)[1])
    assert min(seen) > len(GROUPS) and len(seen) == 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_it_is_left_alone_where_it_is_a_choice_of_experts_or_is_called_otherwise() -> None:
    layer, experts = nn.Module(), nn.Module()
    experts.experts = nn.ModuleList([nn.Linear(2, 2)])
    layer.mlp = experts
    decoder = nn.Module()
    assert LastMlp.of(decoder) is None
    decoder.layers = nn.ModuleList([layer])
    assert LastMlp.of(decoder) is None
    layer.mlp = nn.Linear(2, 2)
    assert LastMlp.of(decoder) is not None
