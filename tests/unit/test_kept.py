"""What frozen layers have read of validation rows: scores are those of a pass that reads all again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_split import SOFT, built, pair, table

from rayrec.config import Config
from rayrec.data.collate import Cut
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.stages import Part, StageName
from rayrec.training.evaluate import score_rows
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.kept import KeptPrefixes, kept_bytes

HYBRID = StageName.TUNE_HYBRID
CONFIG = Config.model_validate({"mapper": {"tokens": SOFT}})
ROWS: Any = SimpleNamespace(fetch=lambda ids: table(hybrid=True).take(ids))
BATCHES = [np.arange(4), np.array([4, 5])]


@pytest.fixture
def model(tiny: Path) -> SASRecLLM:
    made = built(tiny)
    made.set_mode(())
    return made


def scores(model: SASRecLLM, kept: KeptPrefixes | None) -> np.ndarray:
    return np.concatenate([score_rows(model, ROWS, ids, CONFIG, torch.device("cpu"), kept=kept) for ids in BATCHES])


def tokens_read(model: SASRecLLM) -> list[int]:
    """Grows by the tokens of every sequence that the decoder reads."""
    seen: list[int] = []
    assert model.backbone is not None

    def note(module: Any, given: Any, options: dict[str, Any]) -> None:
        seen.append(options["inputs_embeds"].shape[:2].numel())

    model.backbone.decoder.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_scores_are_those_of_all_read_again(model: SASRecLLM) -> None:
    kept, seen = KeptPrefixes(1e9), tokens_read(model)
    first = scores(model, kept)
    assert first == pytest.approx(scores(model, None), abs=1e-6)
    assert model.mapper is not None
    with torch.no_grad():
        for parameter in model.mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    expected = scores(model, None)
    assert np.abs(expected - first).max() > 1e-3
    seen.clear()
    assert scores(model, kept) == pytest.approx(expected, abs=1e-6)
    (suffixes, more) = (pair(hybrid=True, cut=Cut.LEARNING)[1].prompt.suffix_length_B[ids].sum() for ids in BATCHES)
    assert seen == [suffixes, more]  # and no prefix


def test_what_does_not_fit_is_read_again(model: SASRecLLM) -> None:
    batch = pair(hybrid=True)[1]
    read = model.read_prefixes(batch)
    assert read is not None and read.bytes == sum(state.nbytes for state in (*read.keys, *read.values)) > 0
    kept = KeptPrefixes(read.bytes)
    assert kept.of(model, batch, 0) is kept.of(model, batch, 0)
    assert kept.of(model, batch, 1) is not kept.of(model, batch, 1)


def test_an_attention_of_its_own_reads_all_again(model: SASRecLLM) -> None:
    assert model.backbone is not None
    model.backbone.parts_suffixes = False
    batch = pair(hybrid=True)[1]
    assert KeptPrefixes(1e9).of(model, batch, 0) is None
    assert scores(model, KeptPrefixes(1e9)) == pytest.approx(scores(model, None), abs=1e-6)


@pytest.mark.parametrize(
    ("stage", "changes", "kept"),
    [
        (HYBRID, {}, 0.25e9),
        (HYBRID, {"fast": {"kept_prefixes_gb": 0}}, 0),
        (HYBRID, {"fast": {"split_prompts": False}}, 0),
        (HYBRID, {"engine": {"zero_stage": 3}}, 0),
        (HYBRID, {"cluster": {"gpus_per_worker": 1}}, 0),
        (HYBRID, {"stages": {"tune_hybrid": {"trains": list(Part)}}}, 0),
        (StageName.TUNE_LORA, {}, 0),
        (StageName.PRETRAIN_ENCODER, {}, 0),
    ],
)
def test_only_what_frozen_layers_read_is_kept(stage: StageName, changes: dict[str, Any], kept: float) -> None:
    config = Config.model_validate({"engine": {"precision": "fp32"}, **changes})
    job = StageJob(config=config, stage=stage, facts=DataFacts(users=8, items=20, max_len=8, rows={}), data="")
    assert kept_bytes(job) == kept
