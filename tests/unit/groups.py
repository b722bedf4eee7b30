"""Threads that stand for the workers of a group."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rayrec.training import evaluate


class Group:
    """Workers as threads, with the two calls of torch.distributed that gather their scores."""

    def __init__(self, world: int) -> None:
        self.world, self.local = world, threading.local()
        self.shares: list[Any] = [None] * world
        self.barrier = threading.Barrier(world)

    def get_rank(self) -> int:
        return self.local.rank

    def get_world_size(self) -> int:
        return self.world

    def all_gather_object(self, gathered: list[Any], mine: Any) -> None:
        self.shares[self.local.rank] = mine
        self.barrier.wait(10)
        gathered[:] = self.shares

    def run(self, work: Callable[[], Any]) -> list[Any]:
        def as_rank(rank: int) -> Any:
            self.local.rank = rank
            return work()

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(as_rank, range(self.world)))


def by_any_group(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What validation finds, which is the same on every worker of groups of one, two and four."""
    found = []
    for world in (1, 2, 4):
        group = Group(world)
        monkeypatch.setattr(evaluate, "dist", group)
        found += group.run(work)
    assert len(found) == 7 and all(metrics == found[0] for metrics in found)
    return found[0]
