"""A stage's own training step, without Ray: the engine, the model and the data order that the loop uses."""

import os
import time
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch.nn import functional

from rayrec.benchmark.rows import Rounds
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.training.engine import Engine
from rayrec.training.hardware import the_device
from rayrec.training.model import quiet_libraries


def alone(folder: Path) -> None:
    """A process group of this process alone, which DeepSpeed wants."""
    os.environ.setdefault("LOCAL_RANK", "0")
    quiet_libraries()
    if not dist.is_initialized():
        backend = "nccl" if the_device().type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)


class OwnLoop:
    """The stage as ``training.loop`` steps it, on one worker."""

    def __init__(self, rounds: Rounds, model: SASRecLLM) -> None:
        self.rounds, self.model = rounds, model
        self.engine = Engine.of_stage(rounds.job, model)
        self.taken = 0

    def __call__(self, number: int) -> int:
        job, done = self.rounds.job, 0
        for table in self.rounds.batches(number):
            self.model.set_mode(job.trains)
            self.engine.step(job.micro_batches(table), self.taken)
            self.taken, done = self.taken + 1, done + self.count(table)
        return done

    def count(self, table: pa.Table) -> int:
        """Things of a batch that the rate is of."""
        return int(table.num_rows)


def matmul_peak(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """FLOP a second of a linear layer's product in this process, the best that was seen.

    A CPU without instructions for bf16 reaches a tenth of its fp32 figure.
    """
    device = the_device()
    size = 1024 if device.type == "cpu" else 8192
    best, end = 0.0, time.perf_counter() + seconds
    states, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    float(functional.linear(states, weight)[0, 0])
    while time.perf_counter() < end:
        began = time.perf_counter()
        float(functional.linear(states, weight)[0, 0])  # a number on the host: the product is done
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
