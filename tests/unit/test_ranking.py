"""Re-ranking against one prompt a candidate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayrec.config import Config
from rayrec.config.model import EncoderConfig
from rayrec.data.prompts import PromptEncoder, resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.factors import MF
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build
from rayrec.ranking import score_candidates
from rayrec.stages import EncoderKind, Part

TITLES = [f"The Film {'of the Long Name ' * (i % 4)}{i} (19{i:02d})" for i in range(1, 21)]
HISTORY = [3, 9, 1, 7, 12]


@pytest.fixture
def config() -> Config:
    changes = {"encoder": {"width": 16, "max_len": 4}, "engine": {"precision": "fp32"}, "data": {"history": 3}}
    return Config.model_validate(changes | {"cluster": {"workers": 1}, "mapper": {"tokens": 2}})


def made(tiny: Path, config: Config) -> SASRecLLM:
    answers = resolve_answers(load_tokenizer(tiny))
    torch.manual_seed(0)
    shape = ModelShape(users=4, items=len(TITLES), max_len=4, backbone=tiny, answers=(answers.yes, answers.no))
    model = build(config, shape, parts=frozenset(Part), with_backbone=True)
    for parameter in model.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def model(tiny: Path, config: Config) -> SASRecLLM:
    return made(tiny, config)


def test_together_they_score_as_one_by_one(tiny: Path, model: SASRecLLM, config: Config) -> None:
    prompts = PromptEncoder(load_tokenizer(tiny), TITLES, 100)
    candidates = [5, 2, 20, 11, 8, 4]
    together = score_candidates(model, prompts, config, HISTORY, candidates)
    alone = np.concatenate([score_candidates(model, prompts, config, HISTORY, [item]) for item in candidates])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (6,) and len(set(together.round(6))) == 6
    other = score_candidates(model, prompts, config, HISTORY[:-1], candidates)
    assert not np.allclose(together, other, atol=1e-4)


def test_a_user_without_history_has_scores_too(tiny: Path, model: SASRecLLM, config: Config) -> None:
    prompts = PromptEncoder(load_tokenizer(tiny), TITLES, 100)
    assert np.isfinite(score_candidates(model, prompts, config, [], [1, 2])).all()


def test_an_encoder_that_knows_users_by_name_is_told_the_name(tiny: Path, config: Config) -> None:
    settings = config.model_copy(update={"encoder": EncoderConfig(kind=EncoderKind.MF, width=16, max_len=4)})
    model = made(tiny, settings)
    assert isinstance(model.encoder, MF)
    nn.init.normal_(model.encoder.user.weight.data[1:4])  # of users 0 to 2; user 3 never came in training
    prompts = PromptEncoder(load_tokenizer(tiny), TITLES, 100)
    first, second, unseen = (score_candidates(model, prompts, settings, HISTORY, [5, 2], user=u) for u in (0, 1, 3))
    nobody = score_candidates(model, prompts, settings, HISTORY, [5, 2])
    assert np.array_equal(unseen, nobody)
    assert not np.allclose(first, second, atol=1e-6) and not np.allclose(first, nobody, atol=1e-6)
