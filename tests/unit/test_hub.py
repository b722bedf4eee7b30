"""A model on a hub: its weights and texts alone, asked for once, given up in time."""

import json
import socket
import time
from pathlib import Path

import pytest
from origins import Server, failure, leftovers

from rayrec import sources
from rayrec.sources import fetch


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The few endpoints that a snapshot needs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    commit = "c" * 40
    files = {"config.json": b"{}", "model.safetensors": b"weights", "model.onnx": b"unwanted"}
    info = {"id": "org/toy", "modelId": "org/toy", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(body), "oid": "d" * 40} for name, body in files.items()]
    for revision in ("main", "v1", commit):
        server.content[f"/api/models/org/toy/revision/{revision}"] = json.dumps(info).encode()
    server.content[f"/api/models/org/toy/tree/{commit}"] = json.dumps(tree).encode()
    for name, body in files.items():
        server.content[f"/org/toy/resolve/{commit}/{name}"] = body
    server.headers["X-Repo-Commit"] = commit
    return server


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_model_on_a_hub(hub: Server, cache: Path, revision: str) -> None:
    folder = fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }
    asked = len(hub.hits)
    assert asked >= 3
    assert fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache) == folder
    assert len(hub.hits) == asked  # the cache answers without the network
    (folder / "model.safetensors").resolve().unlink()
    assert (fetch([f"hf://org/toy{revision}"], what="backbone", cache=cache) / "model.safetensors").exists()


def test_a_models_config_alone(hub: Server, cache: Path) -> None:
    folder = fetch(["hf://org/toy"], what="backbone", cache=cache, config_only=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    asked = len(hub.hits)
    assert fetch(["hf://org/toy"], what="backbone", cache=cache, config_only=True) == folder
    assert len(hub.hits) == asked
    whole = fetch(["hf://org/toy"], what="backbone", cache=cache)  # is not taken for fetched
    assert (whole / "model.safetensors").read_bytes() == b"weights"


def test_a_hub_cache_behind_a_link(hub: Server, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert (fetch(["hf://org/toy"], what="backbone", cache=tmp_path / "link") / "config.json").exists()


def test_a_hub_without_the_model_fails(hub: Server, cache: Path) -> None:
    assert "the hub did not deliver" in failure("hf://org/absent", cache)
    assert leftovers(cache) == []


def test_a_silent_hub_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert "Timeout" in failure("hf://org/toy", cache)
    assert time.monotonic() - started < 5
