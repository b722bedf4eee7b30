"""A loss scale goes from engine to engine where both have one that moves, and is no matter where they do not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaleConfig, LossScaleProfile, LossScaler

from rayrec.training.engine import Engine

MOVED = {"cur_scale": 512.0, "cur_iter": 7.0, "last_overflow_iter": 4.0}


def engine(**optimizer: Any) -> Engine:
    """An engine of nothing but DeepSpeed's optimizer."""
    made = Engine.__new__(Engine)
    made._engine = SimpleNamespace(optimizer=SimpleNamespace(**optimizer))
    return made


def with_zero() -> Engine:
    return engine(loss_scaler=DynamicLossScaler(2.0**16, 2.0, 1000, 1, 2, False))


def without_zero() -> Engine:
    return engine(loss_scale_config=LossScaleConfig(torch.float16, True, 1.0, None, profile=LossScaleProfile.UNFUSED))


@pytest.mark.parametrize("made", [with_zero, without_zero])
def test_a_scale_that_moves_is_taken_up(made: Any) -> None:
    fresh = made()
    fresh.restore_loss_scale(MOVED)
    assert MOVED.items() <= fresh.loss_scale().items()
    again = made()
    again.restore_loss_scale(fresh.loss_scale())
    assert again.loss_scale() == fresh.loss_scale()


@pytest.mark.parametrize("optimizer", [{}, {"loss_scaler": None}, {"loss_scaler": LossScaler(1.0)}])
def test_what_does_not_scale_keeps_and_takes_nothing(optimizer: dict[str, Any]) -> None:
    fixed = engine(**optimizer)
    fixed.restore_loss_scale(MOVED)
    assert fixed.loss_scale() == {}
