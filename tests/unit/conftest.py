import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from origins import Server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: these tests are too small for threads


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where sources are fetched to."""
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of this machine, which no proxy stands before."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random LLaMA with its tokenizer."""
    from rayrec.models.checkpoints import quiet_transformers  # noqa: PLC0415
    from rayrec.models.tiny import write_tiny_llama  # noqa: PLC0415

    quiet_transformers()
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    write_tiny_llama(folder)
    return folder
