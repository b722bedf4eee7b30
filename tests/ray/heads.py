"""A Ray cluster of a test's own: one head node with two CPUs and token authentication."""

import json
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """``env`` holds the token and the address of the job server."""

    env: dict[str, str]
    address: str  # for a driver: RAY_ADDRESS
    head: processes.Running

    def submit(self, log: Path, *entrypoint: str) -> processes.Finished:
        return processes.run([RAY, "job", "submit", "--working-dir", ".", *entrypoint], self.env, log)

    def listed(self, log: Path, kind: str) -> list[dict[str, Any]]:
        """``ray list KIND``: placement-groups, actors, ..."""
        options = ["--format", "json", "--limit", "10000", "--address", self.env["RAY_API_SERVER_ADDRESS"]]
        out = processes.run([RAY, "list", kind, *options], self.env, log).checked().out
        last = out.splitlines()[-1]  # before it may stand what was asked earlier
        return [] if last.startswith("No resource") else json.loads(last)

    def drain(self, node: str, log: Path, *, seconds: int) -> None:
        """Tell a node that it will be taken away so soon, as a cloud does."""
        command = [RAY, "drain-node", "--address", self.address, "--node-id", node]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        processes.run(command, self.env, log).checked()

    @contextmanager
    def node(self, log: Path, *, cpus: int = 1) -> Iterator[processes.Running]:
        """One more node, in the cluster for as long as the block runs unless it is killed."""
        command = [RAY, "start", f"--address={self.address}", "--block", f"--num-cpus={cpus}", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=300000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        with processes.running(command, self.env, log) as node:
            yield node


@contextmanager
def started(env: dict[str, str], log: Path, *, cpus: int = 2) -> Iterator[Cluster]:
    """One node; it and all its processes end with the block."""
    scratch = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))  # Ray's socket paths must be short
    gcs, dashboard, client, agent = _free_ports(4)
    env = env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    command = [RAY, "start", "--head", "--block", f"--num-cpus={cpus}", "--disable-usage-stats"]
    command += [f"--temp-dir={scratch}", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += ["--object-store-memory=300000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={client}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    try:
        with processes.running(command, env, log) as head:
            processes.wait_until(lambda: head.ended or _is_open(dashboard), "the job server", timeout=180)
            assert not head.ended, head.output()
            served = env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
            yield Cluster(served, f"127.0.0.1:{gcs}", head)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
