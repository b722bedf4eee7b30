"""A node that is about to be taken away says so beforehand; its group saves then, instead of losing an interval."""

import time

import ray.train

_ASK_SECONDS = 5.0  # between two questions: each is a round through an actor


class Notice:
    """Asks Ray Train now and then. Every worker must ask equally often, so the time is the sum of all workers'."""

    def __init__(self, world: int) -> None:
        self._world, self._asked, self._told = world, time.perf_counter(), False
        self.unasked = 0.0  # seconds since the last question, added up over the group

    @property
    def elapsed(self) -> float:
        """This worker's seconds since the last question."""
        return time.perf_counter() - self._asked

    def has_come(self) -> bool:
        """Whether a node of the group has just given notice; the same on every worker, and true once."""
        if self._told or self.unasked < _ASK_SECONDS * self._world:
            return False
        self._asked = time.perf_counter()
        self._told = ray.train.get_preemption_info() is not None
        return self._told
