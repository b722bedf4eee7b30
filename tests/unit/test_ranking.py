"""Re-ranking against one prompt a candidate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rayrec import ranking
from rayrec.batch import FEATURES, Batch, Prompt
from rayrec.config import Config
from rayrec.config.model import EncoderConfig
from rayrec.data.collate import Cut, collate
from rayrec.data.prompts import PromptEncoder, resolve_answers
from rayrec.data.tokenise import load_tokenizer
from rayrec.models.factors import MF
from rayrec.models.sasrecllm import ModelShape, SASRecLLM, build
from rayrec.ranking import candidate_table, score_candidates
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


@pytest.mark.parametrize("at_once", [4, 50])
def test_they_score_as_whole_prompts(
    tiny: Path, model: SASRecLLM, config: Config, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft tokens of the user stand in the prefix, which is read once for all that are scored at once."""
    monkeypatch.setattr(ranking, "_AT_ONCE", at_once)
    prompts, candidates = PromptEncoder(load_tokenizer(tiny), TITLES, 100), [5, 2, 20, 11, 8, 4, 1, 3, 9]
    table = candidate_table(prompts, HISTORY, candidates, shown=3, read=4)
    model.set_mode(())
    with torch.no_grad():
        whole = torch.sigmoid(model(collate(table, config.mapper.tokens, Cut.NOWHERE)))
    together = score_candidates(model, prompts, config, HISTORY, candidates)
    np.testing.assert_allclose(together, whole.numpy(), atol=1e-6)


def test_titles_alone_are_scored_as_one_by_one(tiny: Path, config: Config) -> None:
    tokenizer = load_tokenizer(tiny)
    answers = resolve_answers(tokenizer)
    torch.manual_seed(0)
    shape = ModelShape(users=4, items=len(TITLES), max_len=4, backbone=tiny, answers=(answers.yes, answers.no))
    model = build(config, shape, parts=frozenset({Part.LORA}), with_backbone=True)
    for parameter in model.parts()[Part.LORA].values():
        nn.init.normal_(parameter, std=0.3)
    model.set_mode(())
    prompts, candidates = PromptEncoder(tokenizer, TITLES, 100), [5, 2, 20, 11]
    for history in (HISTORY, []):
        alone = []
        for item in candidates:
            tokens = torch.tensor([prompts.encode(history[-3:], item).text])
            nothing = torch.zeros(1, 1, dtype=torch.int64)
            prompt = Prompt(tokens, torch.tensor([tokens.shape[1]]))
            with torch.no_grad():
                alone.append(model(Batch(nothing[0], nothing, nothing[0], torch.zeros(1), prompt)).sigmoid().item())
        together = score_candidates(model, prompts, config, history, candidates)
        np.testing.assert_allclose(together, alone, atol=1e-6)
        assert len(set(together.round(6))) == 4


def test_a_user_without_history_has_scores_too(tiny: Path, model: SASRecLLM, config: Config) -> None:
    prompts = PromptEncoder(load_tokenizer(tiny), TITLES, 100)
    assert np.isfinite(score_candidates(model, prompts, config, [], [1, 2])).all()
    assert score_candidates(model, prompts, config, HISTORY, []).shape == (0,)


def test_all_rated_items_and_a_floor_are_given_where_they_are_read(tiny: Path, config: Config) -> None:
    floors = {"offset": "feature_floor", "features": "feature_floor"}
    changes = {"encoder": {"history": "rated"}, "mapper": floors}
    tree = config.model_dump()
    settings = Config.model_validate(tree | {key: tree[key] | value for key, value in changes.items()})
    model, prompts = made(tiny, settings), PromptEncoder(load_tokenizer(tiny), TITLES, 100)
    assert model.mapper is not None and model.mapper.offset is not None
    nn.init.constant_(model.mapper.offset.own, 1.0)
    assert model.mapper.features is not None
    nn.init.normal_(model.mapper.features.weight)
    told = np.random.default_rng(0).normal(size=(3, FEATURES)).astype(np.float32)
    rated = [(3, True), (2, False), (9, True), (1, True), (8, False), (7, True), (12, True)]
    candidates, floor = [5, 2, 20], [0.5, -2.0, 1.0]

    def logits(**given: Any) -> np.ndarray:
        score = score_candidates(
            model, prompts, settings, HISTORY, candidates, **{"rated": rated, "floor": floor, "features": told} | given
        )
        return np.log(score / (1 - score))

    own = logits() - floor
    np.testing.assert_allclose(logits(floor=[0.0] * 3), own, atol=1e-5)
    changed = logits(features=told * [[1], [-1], [1]]) != logits()
    assert changed.tolist() == [False, True, False]
    assert np.abs(own).max() > 1e-3
    np.testing.assert_allclose(logits(rated=rated[-4:]), logits(), atol=1e-6)  # it reads no more than four
    other = [*rated[:-1], (12, False)]
    assert not np.allclose(logits(rated=other), logits(), atol=1e-6)
    assert np.isfinite(logits(rated=[])).all()
    for missing, message in (
        ("rated", "encoder.history: rated; give all rated items"),
        ("floor", "give the feature floor's logits, too"),
        ("features", "mapper.features: feature_floor; give its features, too"),
    ):
        with pytest.raises(ValueError, match=message):
            logits(**{missing: None})


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
