"""Where a process computes, and what its GPU must be able to do, told in one line before a model is loaded."""

import importlib.util

import torch

from rayrec.config import Config
from rayrec.errors import InputError

_BF16_FROM = (8, 0)  # compute capability: Ampere; a T4 is 7.5, where torch only imitates it


def the_device() -> torch.device:
    """This process's GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_hardware(config: Config, *, with_backbone: bool) -> None:
    """Refuse what this process's GPU cannot do.

    Raises:
        InputError: there is no GPU although workers were given one; it has no bf16; bitsandbytes is missing.
    """
    if not config.cluster.gpus_per_worker:
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"cluster.gpus_per_worker: {config.cluster.gpus_per_worker}, but torch finds no CUDA GPU in this worker;"
            " install torch for CUDA there, or set it to 0"
        )
    if not with_backbone:
        return
    found = torch.cuda.get_device_capability()
    if config.engine.precision == "bf16" and found < _BF16_FROM:
        raise InputError(
            f"engine.precision: bf16 needs compute capability 8.0 and {torch.cuda.get_device_name()} has"
            f" {found[0]}.{found[1]}; use fp16"
        )
    if config.backbone.quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("backbone.quantised: nf4 needs bitsandbytes on every worker; pip install 'rayrec[nf4]' there")
