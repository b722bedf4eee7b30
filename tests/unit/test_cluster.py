"""cluster.yaml: Ray's launcher accepts it, it opens nothing to the world, and the T4 configuration fits in it."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrec.settings import load

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
NODES: dict[str, Any] = CLUSTER["available_node_types"]
START = [
    command
    for key in ("head_start_ray_commands", "worker_start_ray_commands")
    for command in CLUSTER[key]
    if "ray start" in command
]


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does before it asks AWS anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415  slow to import

    config: dict[str, Any] = prepare_config(yaml.safe_load(TEXT))
    validate_config(config)
    return config


def test_ray_accepts_the_file(prepared: dict[str, Any]) -> None:
    assert prepared["max_workers"] == 4
    assert set(prepared["available_node_types"]) == {"head", "t4"}  # and none of Ray's own defaults
    workers = prepared["available_node_types"]["t4"]
    assert (workers["min_workers"], workers["max_workers"]) == (0, 4)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


@pytest.mark.skipif(importlib.util.find_spec("boto3") is None, reason="boto3 is not installed (extra `aws`)")
def test_ray_finds_its_provider() -> None:
    from ray.autoscaler._private.providers import _get_node_provider_cls  # noqa: PLC0415

    assert _get_node_provider_cls(CLUSTER["provider"]).__name__ == "AWSNodeProvider"


def test_every_node_asks_for_the_token_and_none_is_written_down() -> None:
    assert len(START) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in START)
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_AUTH_TOKEN=" not in TEXT
    assert not re.search(r"[0-9a-f]{32}|AKIA[0-9A-Z]{16}", TEXT)


def test_the_dashboard_listens_on_loopback_alone(prepared: dict[str, Any]) -> None:
    commands = " ".join(prepared["head_start_ray_commands"])
    assert re.findall(r"--dashboard-host[= ](\S+)", commands) == ["127.0.0.1"]


def test_nothing_is_open_to_the_world(prepared: dict[str, Any]) -> None:
    assert not re.search(r"0\.0\.0\.0|::/0", str(prepared))
    # Without ids Ray would make a group of its own, with SSH open to every address.
    assert all(node["node_config"]["SecurityGroupIds"] for node in prepared["available_node_types"].values())


def test_gpus_are_where_training_runs() -> None:
    assert NODES["t4"]["node_config"]["InstanceType"] == "g4dn.xlarge"
    assert NODES["t4"]["resources"] == {"CPU": 4, "GPU": 1}
    assert not NODES["head"]["resources"].get("GPU")
    assert CLUSTER["max_workers"] >= NODES["t4"]["max_workers"]


def test_what_is_mounted_exists_and_suffices_to_install() -> None:
    local = [path for path in CLUSTER["file_mounts"].values() if not path.startswith("~")]
    assert {"pyproject.toml", "constraints.txt", "rayrec"} <= set(local)
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_the_t4_configuration_fits() -> None:
    config = load(ROOT / "configs" / "ml1m_tinyllama_t4.yaml")
    one, node = config.cluster, NODES["t4"]
    each = min(
        node["resources"]["GPU"] // one.gpus_per_worker,
        node["resources"]["CPU"] // one.cpus_per_worker,
    )
    assert one.workers <= each * node["max_workers"]
    assert config.engine.precision == "fp16"  # a T4 only emulates bf16
    assert config.storage.startswith("s3://")  # every node sees it
