"""``engine.precision: auto``: what is written; a configuration holds what it came to."""

from pathlib import Path

import pytest
from configurations import configured

import rayrec.config
from rayrec.config import Config, cpu, identity
from rayrec.settings import validate

X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu sse2 avx2 {more}\nbugs\t\t: bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {more}\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("facts", "more", "has"),
    [
        (X86, "", False),
        (X86, "avx512f avx512bw", False),
        (X86, "avx512f avx512_bf16", True),
        (X86, "amx_bf16", True),
        (ARM, "", False),
        (ARM, "i8mm bf16", True),
        ("no flags", "", False),
    ],
)
def test_the_flags_of_a_cpu(facts: str, more: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(facts.format(more=more))
    monkeypatch.setattr(cpu, "_FACTS", path)
    assert cpu.has_bf16() is has


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_FACTS", tmp_path / "none")
    assert not cpu.has_bf16()


@pytest.mark.parametrize(
    ("written", "has_bf16", "gpus", "held"),
    [
        ("auto", True, 0, "bf16"),
        ("auto", False, 0, "fp32"),
        ("auto", False, 1, "bf16"),  # which a GPU has or is refused for
        ("bf16", False, 0, "bf16"),
        ("fp32", True, 0, "fp32"),
        ("fp16", True, 1, "fp16"),
    ],
)
def test_what_is_held(written: str, has_bf16: bool, gpus: int, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayrec.config, "has_bf16", lambda: has_bf16)
    overrides = [f"engine.precision={written}", "engine.zero_stage=1", f"cluster.gpus_per_worker={gpus}"]
    found = configured(*overrides)
    assert (found.engine.precision, found.engine.zero_stage) == (held, 1)
    assert identity(found) == identity(configured(*overrides, f"engine.precision={held}"))
    assert Config.model_validate(found) == found


def test_what_came_of_it_goes_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayrec.config, "has_bf16", lambda: True)
    dumped = configured("engine.precision=auto").model_dump(mode="json")
    monkeypatch.setattr(rayrec.config, "has_bf16", lambda: False)
    assert validate(dumped, "a node").engine.precision == "bf16"
