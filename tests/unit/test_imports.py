import gc
import subprocess
import sys

import pytest

from rayrec.training.imports import uncollected, without


def test_nothing_is_collected_in_the_block_alone() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_module_is_missing_in_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with without("wave"), pytest.raises(ImportError):
        import wave  # noqa: PLC0415
    import wave  # noqa: PLC0415

    with without("wave"):
        assert sys.modules["wave"] is wave


ENGINE = """
import sys
from rayrec.training.engine import import_deepspeed
import_deepspeed()
assert "deepspeed.autotuning" in sys.modules
assert "mlflow" not in sys.modules
import mlflow
"""


def test_an_engine_leaves_mlflow_alone() -> None:
    """DeepSpeed imports it for its autotuner, a second of every worker."""
    subprocess.run([sys.executable, "-c", ENGINE], check=True, timeout=120)
