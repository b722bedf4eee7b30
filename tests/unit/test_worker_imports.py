"""What every worker and controller imports before its first step: each library more is seconds at every start."""

import subprocess
import sys

import pytest

SLOW = {"sklearn", "scipy.stats", "matplotlib", "peft", "transformers", "deepspeed"}


@pytest.mark.parametrize("module", ["rayrec.training.loop", "rayrec.training.launch", "rayrec.evaluation.scorer"])
def test_a_worker_waits_for_no_library_that_it_may_not_need(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({SLOW} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
