"""What a run says before it loads a model."""

import logging

import pytest

from rayrec.config import Config
from rayrec.stages import STAGES, StageName
from rayrec.training import model

LORA, ENCODER = StageName.TUNE_LORA, StageName.PRETRAIN_ENCODER  # which trains in fp32


# precision, stages, whether the CPU has bf16 -> whether a line is told
CASES = [
    ("bf16", list(STAGES), False, True),
    ("bf16", [LORA], False, True),
    ("bf16", [ENCODER], False, False),
    ("bf16", [LORA], True, False),
    ("fp32", [LORA], False, False),
]


def test_a_cpu_without_bf16_is_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for precision, stages, has_bf16, told in CASES:
        caplog.clear()
        monkeypatch.setattr(model, "_has_bf16", lambda has=has_bf16: has)
        with caplog.at_level(logging.WARNING):
            model.warn_of_slow_bf16(Config.model_validate({"engine": {"precision": precision}}), stages)
        assert ["this CPU has no instructions for it" in line for line in caplog.messages] == [True] * told
