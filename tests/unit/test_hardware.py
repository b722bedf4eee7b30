"""What a worker's GPU cannot do is one line."""

import importlib.util

import pytest
import torch

from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.training.hardware import check_hardware


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


def config(precision: str = "fp16", quantised: str | None = None, gpus: int = 1) -> Config:
    tree = {"engine": {"precision": precision}, "backbone": {"quantised": quantised}}
    return Config.model_validate(tree | {"cluster": {"gpus_per_worker": gpus}})


def test_bf16_on_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (7, 5))
    with pytest.raises(InputError, match=r"bf16 needs compute capability 8\.0 and Tesla T4 has 7\.5; use fp16"):
        check_hardware(config("bf16"), with_backbone=True)
    check_hardware(config("bf16"), with_backbone=False)  # the encoder trains in fp32
    check_hardware(config("fp16"), with_backbone=True)
    gpu(monkeypatch, (8, 0))
    check_hardware(config("bf16"), with_backbone=True)


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, None)
    with pytest.raises(InputError, match=r"cluster\.gpus_per_worker: 1, but torch finds no CUDA GPU"):
        check_hardware(config(), with_backbone=False)
    check_hardware(config("bf16", gpus=0), with_backbone=True)


def test_four_bits_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nf4 needs bitsandbytes .* pip install 'rayrec\[nf4\]'"):
        check_hardware(config(quantised="nf4"), with_backbone=True)
