import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: these tests are too small for threads


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random LLaMA with its tokenizer."""
    from rayrec.models.checkpoints import quiet_transformers  # noqa: PLC0415
    from rayrec.models.tiny import write_tiny_llama  # noqa: PLC0415

    quiet_transformers()
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    write_tiny_llama(folder)
    return folder
