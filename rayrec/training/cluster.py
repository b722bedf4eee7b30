"""Ray: connect to the cluster that runs this job, or start an embedded one; check that a run fits into it."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from rayrec.config.training import ClusterConfig
from rayrec.errors import Abandoned, InputError

# Embedded only: beside the workers' CPUs, room for the tasks that fetch their data.
_SPARE_CPUS = 1


@contextmanager
def connected(cluster: ClusterConfig, *, dashboard: bool = False) -> Iterator[dict[str, float]]:
    """Ray for the block: the address that ``ray job submit`` sets, else a cluster of this machine's cores.

    Gives the CPUs and GPUs that workers may have. ``dashboard`` is for Ray Tune: without it the placement groups of
    ended trials were seen to stay.

    Raises:
        InputError: the workers ask for more than the cluster can ever give.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Workers poll each other this often; the default of two seconds is the floor of every epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=_told_address())
        with _until_its_end():
            limit = _cluster_limit()
            check_fits(cluster, limit)
            yield limit
        return
    local = local_limit()
    assert local is not None
    check_fits(cluster, local)
    # The core's warnings (every actor of a pool, say) would drown the run's own lines; set it yourself to see them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # This machine gets no notice that it is about to be taken away: no actor need watch for one.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray ends idle processes after a second and pays for their imports again at the next step; much longer, and those
    # of a finished stage stand beside the next one's, which Ray warns of.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "4000")
    # Actors that wait take a process each, many more than cores, and Ray warns at multiples of this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    with _known_address():
        ray.init(
            address="local",
            num_cpus=int(local["CPU"]) + _SPARE_CPUS,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    with _until_its_end():
        yield local


@contextmanager
def _until_its_end() -> Iterator[None]:
    """Ray ends with the block. SIGTERM, as ``ray job stop`` sends it, ends a job as Ctrl-C does.

    Ray's own way with that signal prints a stack and exits with its number, as if the job had failed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as end:
        end.callback(ray.shutdown)
        try:
            yield
        except Abandoned:
            end.pop_all()
            raise


def _told_address() -> dict[str, Any] | None:
    """Of a cluster that was there: what ``_known_address`` is for one of our own."""
    address = os.environ["RAY_ADDRESS"]
    return {"env_vars": {"RAY_ADDRESS": address}} if re.fullmatch(r"[\w.-]+:\d+", address) else None


@contextmanager
def _known_address() -> Iterator[None]:
    """For the processes of a cluster that is started in the block: where it is, in their environment.

    Train's cleaner of placement groups asks Ray's state without saying which Ray. Where another one runs on the machine
    it would give up, and the next trial would wait for its place for ever.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    told = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]


def capacity(cluster: ClusterConfig, limit: dict[str, float]) -> int:
    """Worker groups that ``limit`` holds at once."""
    needs = (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker))
    return min(int(limit.get(kind, 0) // (cluster.most * each)) for kind, each in needs if each)


def check_fits(cluster: ClusterConfig, limit: dict[str, float]) -> None:
    """Raises ``InputError`` where the workers need more CPUs or GPUs than ``limit``."""
    for kind, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        there = limit.get(kind, 0)
        if cluster.least * each > there:
            raise InputError(
                f"cluster.workers: {cluster.least} workers x {each} {kind} need {cluster.least * each}, the cluster"
                f" has {there:g}; set cluster.workers to {max(1, int(there // each))} or start more nodes"
            )


def _cluster_limit() -> dict[str, float]:
    """What the cluster has, or what its autoscaler may add up to."""
    limit: dict[str, float] = dict(ray.cluster_resources())
    ceiling = ray._private.state.state.get_max_resources_from_cluster_config()  # no public call tells the maximum
    for kind, amount in (ceiling or {}).items():
        limit[kind] = max(limit.get(kind, 0), amount)
    return limit


def local_limit() -> dict[str, float] | None:
    """What an embedded cluster has; None where the job runs on a cluster of its own."""
    if "RAY_ADDRESS" in os.environ:
        return None
    import torch  # noqa: PLC0415  (seconds to import)

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
