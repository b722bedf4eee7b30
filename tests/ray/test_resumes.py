"""Every precision, ZeRO stage and number of workers goes on from every other: one kind of checkpoint for all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import CUT, ZERO, Case, load, name, run_cases

from rayrec.models.tiny import write_tiny_llama

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
EACH = [(zero, precision, world) for world in (1, 2) for precision in ("fp32", "bf16") for zero in ZERO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs lie: from the start, and from every other's middle."""
    folder = tmp_path_factory.mktemp("resumes")
    write_tiny_llama(folder / "llama")
    for world in (1, 2):
        run_cases([Case(name(z, p, w), z, p) for z, p, w in EACH if w == world], world, folder)
    for world in (1, 2):
        starts = [name(*start) for start in EACH]
        onto = [(z, p, start) for z, p, w in EACH if w == world for start in starts]
        run_cases([Case(name(z, p, world, start), z, p, start=start) for z, p, start in onto], world, folder)
    return folder


@pytest.mark.parametrize("onto", EACH, ids=lambda onto: name(*onto))
@pytest.mark.parametrize("start", EACH, ids=lambda start: name(*start))
def test_goes_on(start: tuple[Any, ...], onto: tuple[Any, ...], folder: Path) -> None:
    """What was saved is taken up bit for bit, and the losses that follow are those of the run that went on."""
    given, ours = load(folder, name(*start)), load(folder, name(*onto, name(*start)))
    assert set(ours["restored"]) == set(given["cut"])
    differing = [key for key, value in given["cut"].items() if not torch.equal(ours["restored"][key], value)]
    assert differing == []
    exact = start[1] == onto[1] == "fp32"
    assert ours["losses"] == pytest.approx(given["losses"][CUT:], abs=1e-5 if exact else 2e-2)
