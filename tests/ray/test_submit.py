"""``ray job submit`` to a cluster of this test's own, with token authentication and no CPU to spare.

The cluster has two CPUs and the two workers hold both: tokenising, the data streams, validation and the scorers must
do with what is left, which is what a submitted job finds on any cluster of exactly its size.
"""

import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
from conftest import SMOKE, Pipeline

from rayrec.stages import STAGES, SYSTEMS

pytestmark = pytest.mark.timeout(900)
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """A head node; ``env`` holds the token and the address of its job server."""

    env: dict[str, str]

    def submit(self, log: Path, *entrypoint: str) -> processes.Finished:
        return processes.run([RAY, "job", "submit", "--working-dir", ".", *entrypoint], self.env, log)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def cluster(job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with two CPUs; it and all its processes end with the tests."""
    scratch = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))  # Ray's socket paths must be short
    gcs, dashboard, client, agent = free_ports(4)
    env = job_env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={scratch}"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", "--object-store-memory=300000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={client}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    try:
        with processes.running(command, env, tmp_path_factory.mktemp("head")) as head:
            processes.wait_until(lambda: head.ended or is_open(dashboard), "the job server", timeout=180)
            assert not head.ended, head.output()
            yield Cluster(env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_both_forms_give_the_same_bytes(cluster: Cluster, uninterrupted: Pipeline, tmp_path: Path) -> None:
    """The path alone, whose exec bit and shebang travel with the working directory, trains; ``python`` finds it done.

    ``--`` only keeps the job's options from the command line of Ray.
    """
    uninterrupted.finished.checked()
    options = ["jobs/full_pipeline.py", *SMOKE, "--set", f"storage={tmp_path}"]
    finished = cluster.submit(tmp_path / "log", "--", *options).checked()
    print(f"submitted run: {finished.seconds:.0f} s")
    again = cluster.submit(tmp_path / "again", "--", "python", *options).checked()
    assert "all stages are complete; nothing to do" in again.out
    for out in (finished.out, again.out):
        assert re.search(r"^SASRecLLM +\d", out, re.MULTILINE)
    for system in SYSTEMS:
        path = f"predictions/{system}.parquet"
        assert (tmp_path / "smoke" / path).read_bytes() == (uninterrupted.folder / path).read_bytes(), path
    for stage, spec in STAGES.items():
        for part in spec.trains:
            path = f"parts/{stage}/{part}/model.safetensors"
            assert (tmp_path / "smoke" / path).read_bytes() == (uninterrupted.folder / path).read_bytes(), path


@pytest.mark.parametrize("path", sorted((processes.ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_every_job_file_could_be_one(path: Path) -> None:
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python3\n")


def test_another_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    stranger = Cluster(cluster.env | {"RAY_AUTH_TOKEN": secrets.token_hex(16)})
    refused = stranger.submit(tmp_path / "log", "--", "echo", "let in")
    assert refused.code != 0 and "let in" not in refused.out
    assert "401" in refused.err + refused.out or "auth" in (refused.err + refused.out).lower()
