"""``ray job submit`` to a cluster of this test's own, with token authentication and no CPU to spare.

The cluster has two CPUs and the two workers hold both: tokenising, the data streams, validation and the scorers must
do with what is left, which is what a submitted job finds on any cluster of exactly its size.
"""

import dataclasses
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import heads
import processes
import pytest
from clicks import STAGES
from conftest import SCORED, SMOKE, Pipeline
from heads import Cluster

from rayrec.stages import StageName

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster(job_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with heads.started(job_env, tmp_path_factory.mktemp("head")) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "given",
    [pytest.param(tuple(STAGES)[:-1], id="the last stage"), pytest.param((), id="all stages", marks=pytest.mark.full)],
)
def test_both_forms_give_the_same_bytes(
    given: tuple[StageName, ...], cluster: Cluster, uninterrupted: Pipeline, tmp_path: Path
) -> None:
    """The path alone, whose exec bit and shebang travel with the working directory, trains; ``python`` finds it done.

    ``given``: stages that are trained already. ``--`` only keeps the job's options from the command line of Ray.
    """
    uninterrupted.finished.checked()
    for stage in given:
        shutil.copytree(uninterrupted.folder.parent / "store" / stage, tmp_path / "store" / stage)
    options = ["jobs/full_pipeline.py", *SMOKE, "--set", f"storage={tmp_path}"]
    finished = cluster.submit(tmp_path / "log", "--", *options).checked()
    print(f"submitted run: {finished.seconds:.0f} s")
    again = cluster.submit(tmp_path / "again", "--", "python", *options).checked()
    assert "all stages are complete; nothing to do" in again.out
    for out in (finished.out, again.out):
        assert re.search(r"^SASRecLLM +\d", out, re.MULTILINE)
    for system in SCORED:
        path = f"predictions/{system}.parquet"
        assert (tmp_path / "smoke" / path).read_bytes() == (uninterrupted.folder / path).read_bytes(), path
    for stage, spec in STAGES.items():
        for part in spec.trains:
            path = f"parts/{stage}/{part}/model.safetensors"
            assert (tmp_path / "smoke" / path).read_bytes() == (uninterrupted.folder / path).read_bytes(), path


BESIDE = """
import ray
from ray.util.state import list_nodes
from rayrec.config.training import ClusterConfig
from rayrec.training.cluster import connected

with connected(ClusterConfig(workers=1), dashboard=True):
    (node,) = ray.get(ray.remote(num_cpus=0)(list_nodes).remote())
    assert node.node_id == ray.get_runtime_context().get_node_id()
    print("asked its own")
"""


@pytest.mark.parametrize("embedded", [True, False])
def test_a_cluster_knows_itself_beside_another(
    embedded: bool, cluster: Cluster, job_env: dict[str, str], tmp_path: Path
) -> None:
    """Ray Train's cleaner of placement groups asks so, and a search waits for what it cleans."""
    command = [sys.executable, "-c", BESIDE]
    with heads.started(job_env, tmp_path / "other") as other:
        env = job_env if embedded else other.env | {"RAY_ADDRESS": other.address}
        assert "asked its own" in processes.run(command, env, tmp_path / "log").checked().out


@pytest.mark.parametrize("path", sorted((processes.ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_every_job_file_could_be_one(path: Path) -> None:
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python3\n")


def test_another_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    stranger = dataclasses.replace(cluster, env=cluster.env | {"RAY_AUTH_TOKEN": secrets.token_hex(16)})
    refused = stranger.submit(tmp_path / "log", "--", "echo", "let in")
    assert refused.code != 0 and "let in" not in refused.out
    assert "401" in refused.err + refused.out or "auth" in (refused.err + refused.out).lower()
