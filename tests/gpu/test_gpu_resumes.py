"""Every precision and ZeRO stage of a GPU goes on from every other, and from what a CPU left."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import CUT, NF4, ZERO, Case, load, name, run_cases

from rayrec.models.tiny import write_tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
EACH = [(zero, precision) for precision in ("fp32", "bf16", "fp16", NF4) for zero in ZERO]
CPU = (2, "fp32")
HALVES = 2e-2  # by which losses of half precisions may differ


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs lie: from the start, and from every other's middle."""
    folder = tmp_path_factory.mktemp("resumes")
    write_tiny_llama(folder / "llama")
    run_cases([Case("cpu", *CPU)], 2, folder)
    run_cases([Case(name(z, p, 1), z, p) for z, p in EACH], 1, folder, "cuda")
    starts = ["cpu", *(name(*start, 1) for start in EACH)]
    onto = [Case(name(z, p, 1, start), z, p, start=start) for z, p in EACH for start in starts]
    run_cases(onto, 1, folder, "cuda")
    return folder


@pytest.mark.parametrize("onto", EACH, ids=lambda onto: name(*onto, 1))
@pytest.mark.parametrize("start", [None, *EACH], ids=lambda start: name(*start, 1) if start else "cpu")
def test_goes_on(start: tuple[Any, ...] | None, onto: tuple[Any, ...], folder: Path) -> None:
    """What was saved is taken up bit for bit; where no weights were packed in four bits, the losses go on too."""
    begun = name(*start, 1) if start else "cpu"
    given, ours = load(folder, begun), load(folder, name(*onto, 1, begun))
    assert set(ours["restored"]) == set(given["cut"])
    assert [key for key, value in given["cut"].items() if not torch.equal(ours["restored"][key], value)] == []
    assert len(ours["losses"]) == len(given["losses"]) - CUT and all(map(math.isfinite, ours["losses"]))
    if NF4 not in (onto[1], (start or CPU)[1]):
        assert ours["losses"] == pytest.approx(given["losses"][CUT:], abs=HALVES)
